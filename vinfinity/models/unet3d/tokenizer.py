"""CLIP's tokenizer, from the files of a model folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from vinfinity.errors import WeightsError
from vinfinity.system.safetensors import read_json

# words, digits and runs of other signs, as in OpenAI's CLIP
PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True)
class Tokens:
    """ids: exactly `length` token ids. cut: the part of the text that did not fit, "" where all of it did."""

    ids: list[int]
    cut: str


class CLIPTokenizer:
    """Text to token ids: lower-cased byte-level BPE between a start and an end token, padded or cut to one length."""

    def __init__(self, tokenizer: Tokenizer, *, pad: int, end: int, length: int) -> None:
        self.tokenizer = tokenizer
        self.length = length
        self.pad, self.end = pad, end

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
    config = (
        read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    )
    special = (
        read_json(folder / "special_tokens_map.json") if (folder / "special_tokens_map.json").exists() else {}
    )

    def token(name: str, otherwise: str) -> AddedToken:
        value: Any = special.get(name) or config.get(name) or otherwise
        entry = value if isinstance(value, dict) else {"content": value}
        flags = {flag: bool(entry.get(flag)) for flag in ("normalized", "lstrip", "rstrip", "single_word")}
        return AddedToken(str(entry["content"]), special=True, **flags)

    # "normalized" is whether a prompt that spells the token in capitals means it too
    tokens = [token("bos_token", "<|startoftext|>"), token("eos_token", "<|endoftext|>")]
    tokens.append(token("pad_token", tokens[1].content))
    start, end, pad = (some.content for some in tokens)
    try:
        if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
            tokenizer = _from_vocabulary(folder, tokens, start=start, end=end)
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
        raise WeightsError(
            "model", folder, "fetch its files again", problem=f"cannot be read ({error})"
        ) from None
    limit = config.get("model_max_length")
    length = min(length, int(limit)) if limit else length
    pad_id, end_id = tokenizer.token_to_id(pad), tokenizer.token_to_id(end)
    if pad_id is None or end_id is None:
        raise WeightsError(
            "model", folder, "fetch its files again", problem=f"lacks its special tokens {pad}, {end}"
        )
    return CLIPTokenizer(tokenizer, pad=pad_id, end=end_id, length=length)


def _from_vocabulary(folder: Path, special: list[AddedToken], *, start: str, end: str) -> Tokenizer:
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split() for line in lines if line and not line.startswith("#version"))
    merges = [(first, second) for first, second in pairs]
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
    tokenizer.add_special_tokens(special)
    ends = [(name, tokenizer.token_to_id(name)) for name in (start, end)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{start} $A {end}", special_tokens=ends)
    return tokenizer
