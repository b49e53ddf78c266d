"""Tiny UMT5 encoders of transformers with random weights, ours with the same weights, and a tiny tokenizer."""

import json
from pathlib import Path
from typing import Any

from oracles.reference import fill
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import T5TokenizerFast, UMT5EncoderModel
from transformers import UMT5Config as TheirConfig

from vinfinity.models.wan.text_config import UMT5Config
from vinfinity.models.wan.umt5 import TextEncoder

TEXT = (
    "a red ball bounces over green grass while a blue boat sails by the shore, slowly! 红色的球 красный мяч"
)


def tiny_umt5(**changes: Any) -> UMT5EncoderModel:
    """Two layers of two heads."""
    settings = {
        "vocab_size": 300,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 24,
        "num_layers": 2,
        "num_heads": 2,
        "feed_forward_proj": "gated-gelu",
        **changes,
    }
    reference = fill(UMT5EncoderModel(TheirConfig(**settings)))
    for name, parameter in reference.named_parameters():
        if "relative_attention_bias" in name or "shared" in name:
            parameter.normal_()
    return reference


def our_umt5(reference: UMT5EncoderModel) -> TextEncoder:
    ours = TextEncoder(UMT5Config.from_dict(reference.config.to_dict()))
    own = {k: v for k, v in reference.state_dict().items() if k != "encoder.embed_tokens.weight"}
    ours.load_state_dict(own)
    return ours.eval().requires_grad_(False)


def save_tiny_tokenizer(folder: Path, **config: Any) -> Path:
    """Return a tokenizer of T5's kind with a vocabulary of its own, and the files that transformers writes."""
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    trained.train_from_iterator([TEXT] * 4, trainer)
    vocabulary = [(token, score) for token, score in json.loads(trained.to_str())["model"]["vocab"]]
    T5TokenizerFast(vocab=vocabulary, extra_ids=0, **config).save_pretrained(folder)
    return folder
