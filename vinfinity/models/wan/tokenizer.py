"""UMT5's tokenizer, from the files of a model folder, and the cleaning of prompts before it."""

import html
import importlib.util
import re
from pathlib import Path

from tokenizers import Tokenizer

from vinfinity.errors import WeightsError, one_line
from vinfinity.models.padded_tokenizer import PaddedTokenizer, padded_length

PAD, END = "<pad>", "</s>"
# how to make tokenizer.json in a folder that has only SentencePiece's file
CONVERT_REMEDY = (
    'make it with transformers and sentencepiece: python -c "from transformers import AutoTokenizer; '
    'AutoTokenizer.from_pretrained({folder!r}).save_pretrained({folder!r})"'
)


class UMT5Tokenizer(PaddedTokenizer):
    """Tokenizes cleaned text, appends an end token, and pads or cuts to a fixed length."""

    def cleaned(self, text: str) -> str:
        return clean_prompt(text)


def clean_prompt(text: str) -> str:
    """Clean a prompt as in the training of Wan's models.

    Repairs broken characters if ftfy is installed, decodes HTML entities, and collapses spaces.
    """
    if importlib.util.find_spec("ftfy") is not None:
        import ftfy

        text = ftfy.fix_text(text)
    text = html.unescape(html.unescape(text))
    return re.sub(r"\s+", " ", text.strip()).strip()


def load_tokenizer(folder: Path, *, length: int) -> UMT5Tokenizer:
    """Load the tokenizer in `folder` from tokenizer.json.

    length: number of tokens that the text encoder takes; the tokenizer's own model_max_length limits it.
    Raises WeightsError if the file is missing or damaged.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        if (folder / "spiece.model").exists():
            remedy = CONVERT_REMEDY.format(folder=str(folder))
            raise WeightsError("model", folder, remedy, problem="has spiece.model, but no tokenizer.json")
        raise WeightsError("model", folder, "add tokenizer.json", problem="has no tokenizer")
    try:
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
    except Exception as error:
        # the tokenizers package raises bare Exceptions
        problem = f"cannot be read ({one_line(error)})"
        raise WeightsError("model", path, "fetch it again", problem=problem) from None
    length = padded_length(folder, length)
    pad_id, end_id = tokenizer.token_to_id(PAD), tokenizer.token_to_id(END)
    if pad_id is None or end_id is None:
        problem = f"lacks its special tokens {PAD}, {END}"
        raise WeightsError("model", path, "fetch it again", problem=problem)
    return UMT5Tokenizer(tokenizer, pad_id=pad_id, end_id=end_id, length=length)
