"""CLIP's tokenizer, from the files of a model folder."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from vinfinity.errors import WeightsError, one_line
from vinfinity.models.padded_tokenizer import PaddedTokenizer, padded_length
from vinfinity.system.safetensors import read_json

# Words, single digits and runs of other characters, as in OpenAI's CLIP.
PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class CLIPTokenizer(PaddedTokenizer):
    """Lower-cased byte-level BPE between a start and an end token, padded or cut to a fixed length."""

    def readable(self, decoded: str) -> str:
        return decoded.replace("</w>", " ")


def load_tokenizer(folder: Path, *, length: int) -> CLIPTokenizer:
    """Load the tokenizer in `folder` from vocab.json and merges.txt, or from tokenizer.json.

    length: number of tokens that the text encoder takes; the tokenizer's own model_max_length limits it.
    Raises WeightsError if a file is missing or damaged.
    """
    config = _read_optional(folder / "tokenizer_config.json")
    special = _read_optional(folder / "special_tokens_map.json")

    def added_token(name: str, default: str) -> AddedToken:
        value: Any = special.get(name) or config.get(name) or default
        entry = value if isinstance(value, dict) else {"content": value}
        # "normalized": whether the token also matches where a prompt spells it in capitals
        flags = {flag: bool(entry.get(flag)) for flag in ("normalized", "lstrip", "rstrip", "single_word")}
        return AddedToken(str(entry["content"]), special=True, **flags)

    tokens = [added_token("bos_token", "<|startoftext|>"), added_token("eos_token", "<|endoftext|>")]
    tokens.append(added_token("pad_token", tokens[1].content))
    start, end, pad = (token.content for token in tokens)
    try:
        if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
            tokenizer = _from_vocabulary(folder, tokens, start=start, end=end)
        elif (folder / "tokenizer.json").exists():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        else:
            remedy = "add vocab.json and merges.txt, or tokenizer.json"
            raise WeightsError("model", folder, remedy, problem="has no tokenizer")
        tokenizer.no_truncation()
        tokenizer.no_padding()
    except WeightsError:
        raise
    except Exception as error:
        # the tokenizers package raises bare Exceptions
        problem = f"cannot be read ({one_line(error)})"
        raise WeightsError("model", folder, "fetch its files again", problem=problem) from None
    length = padded_length(folder, length)
    pad_id, end_id = tokenizer.token_to_id(pad), tokenizer.token_to_id(end)
    if pad_id is None or end_id is None:
        problem = f"lacks its special tokens {pad}, {end}"
        raise WeightsError("model", folder, "fetch its files again", problem=problem)
    return CLIPTokenizer(tokenizer, pad_id=pad_id, end_id=end_id, length=length)


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


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
