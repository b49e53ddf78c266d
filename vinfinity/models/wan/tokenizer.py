"""UMT5's tokenizer, from the files of a model folder, and how prompts are cleaned before."""

import html
import importlib.util
import re
from pathlib import Path

from tokenizers import Tokenizer

from vinfinity.errors import WeightsError, one_line
from vinfinity.models.family import Tokens
from vinfinity.system.safetensors import read_json

PAD, END = "<pad>", "</s>"
# how a folder that has only SentencePiece's file gets a tokenizer.json
CONVERT = (
    'make it with transformers and sentencepiece: python -c "from transformers import AutoTokenizer; '
    'AutoTokenizer.from_pretrained({folder!r}).save_pretrained({folder!r})"'
)


class UMT5Tokenizer:
    """Text to token ids: cleaned, with an end token, padded or cut to one length."""

    def __init__(self, tokenizer: Tokenizer, *, pad_id: int, end_id: int, length: int) -> None:
        self.length, self.pad_id, self.end_id = length, pad_id, end_id
        self._tokenizer = tokenizer

    @property
    def vocabulary_size(self) -> int:
        """Tokens that it knows."""
        return self._tokenizer.get_vocab_size()

    def token(self, token_id: int) -> str:
        """The text of a token."""
        return self._tokenizer.id_to_token(token_id) or ""

    def __call__(self, text: str) -> Tokens:
        """The ids of `text`, and what was cut off."""
        ids = self._tokenizer.encode(clean_prompt(text)).ids
        cut = ""
        if len(ids) > self.length:
            cut = self._tokenizer.decode(ids[self.length - 1 : -1]).strip()
            ids = [*ids[: self.length - 1], self.end_id]
        return Tokens(ids=ids + [self.pad_id] * (self.length - len(ids)), used=len(ids), cut=cut)


def clean_prompt(text: str) -> str:
    """A prompt as Wan's models were given it: mended characters where ftfy is installed, no HTML entities, single
    spaces.
    """
    if importlib.util.find_spec("ftfy") is not None:
        import ftfy

        text = ftfy.fix_text(text)
    text = html.unescape(html.unescape(text))
    return re.sub(r"\s+", " ", text.strip()).strip()


def load_tokenizer(folder: Path, *, length: int) -> UMT5Tokenizer:
    """The tokenizer in `folder`, from tokenizer.json.

    length: tokens that the text encoder takes; the tokenizer's own model_max_length limits it.
    Raises WeightsError if the file is missing or damaged.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        if (folder / "spiece.model").exists():
            remedy = CONVERT.format(folder=str(folder))
            raise WeightsError("model", folder, remedy, problem="has spiece.model, but no tokenizer.json")
        raise WeightsError("model", folder, "put tokenizer.json there", problem="has no tokenizer")
    try:
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
    except Exception as error:
        # the tokenizers package raises bare Exceptions
        problem = f"cannot be read ({one_line(error)})"
        raise WeightsError("model", path, "fetch it again", problem=problem) from None
    config = folder / "tokenizer_config.json"
    own_length = read_json(config).get("model_max_length") if config.exists() else None
    length = min(length, int(own_length)) if own_length else length
    pad_id, end_id = tokenizer.token_to_id(PAD), tokenizer.token_to_id(END)
    if pad_id is None or end_id is None:
        problem = f"lacks its special tokens {PAD}, {END}"
        raise WeightsError("model", path, "fetch it again", problem=problem)
    return UMT5Tokenizer(tokenizer, pad_id=pad_id, end_id=end_id, length=length)
