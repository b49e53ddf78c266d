"""CLIP's tokenizer, from the files of a model folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from vinfinity.errors import WeightsError
from vinfinity.weights.files import read_json

# words, digits and runs of other signs, as in OpenAI's CLIP
PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True)
class Tokens:
    """ids: exactly `length` token ids. cut: the part of the text that did not fit, "" where all of it did."""

    ids: list[int]
    cut: str


class CLIPTokenizer:
    """Text to token ids: lower-cased byte-level BPE between a start and an end token, padded or cut to a fixed length."""

    def __init__(self, tokenizer: Tokenizer, *, pad: str, end: str, length: int) -> None:
        self.tokenizer = tokenizer
        self.length = length
        self.pad, self.end = (tokenizer.token_to_id(token) for token in (pad, end))

    def __call__(self, text: str) -> Tokens:
        """The ids of `text` and what had to be cut off."""
        ids = self.tokenizer.encode(text).ids
        cut = ""
        if len(ids) > self.length:
            cut = self.tokenizer.decode(ids[self.length - 1 : -1]).replace("</w>", " ").strip()
            ids = [*ids[: self.length - 1], self.end]
        return Tokens(ids=ids + [self.pad] * (self.length - len(ids)), cut=cut)


def load_tokenizer(folder: Path, *, length: int) -> CLIPTokenizer:
    """The tokenizer in `folder`: vocab.json and merges.txt, or tokenizer.json.

    length: tokens that the text encoder takes; the tokenizer's own model_max_length bounds it.
    Raises WeightsError where a file is missing or damaged.
    """
    config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    special = read_json(folder / "special_tokens_map.json") if (folder / "special_tokens_map.json").exists() else {}

    def token(name: str, otherwise: str) -> str:
        value: Any = special.get(name) or config.get(name) or otherwise
        return str(value["content"] if isinstance(value, dict) else value)

    start, end = token("bos_token", "<|startoftext|>"), token("eos_token", "<|endoftext|>")
    pad = token("pad_token", end)
    try:
        if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
            tokenizer = _from_vocabulary(folder, start=start, end=end, pad=pad)
        elif (folder / "tokenizer.json").exists():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        else:
            remedy = "put vocab.json and merges.txt, or tokenizer.json there"
            raise WeightsError("model", folder, remedy, problem="holds no tokenizer")
        tokenizer.no_truncation()
        tokenizer.no_padding()
    except WeightsError:
        raise
    except Exception as error:  # the tokenizers package raises bare Exceptions
        raise WeightsError("model", folder, "fetch its files again", problem=f"cannot be read ({error})") from None
    limit = config.get("model_max_length")
    length = min(length, int(limit)) if limit else length
    if tokenizer.token_to_id(pad) is None or tokenizer.token_to_id(end) is None:
        raise WeightsError("model", folder, "fetch its files again", problem=f"lacks its special tokens {pad}, {end}")
    return CLIPTokenizer(tokenizer, pad=pad, end=end, length=length)


def _from_vocabulary(folder: Path, *, start: str, end: str, pad: str) -> Tokenizer:
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    model = BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>", fuse_unk=False, unk_token=end)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in (start, end, pad)])
    tokenizer.post_processor = processors.RobertaProcessing(
        (end, tokenizer.token_to_id(end)), (start, tokenizer.token_to_id(start)), False, False
    )
    return tokenizer
