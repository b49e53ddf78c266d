"""The base of all tokenizers: text to token ids, padded or cut to a fixed length."""

from pathlib import Path

from tokenizers import Tokenizer

from vinfinity.errors import WeightsError
from vinfinity.models.family import Tokens
from vinfinity.system.safetensors import read_json


class PaddedTokenizer:
    """A tokenizer that appends an end token to the text. length: number of token ids per text."""

    def __init__(self, tokenizer: Tokenizer, *, pad_id: int, end_id: int, length: int) -> None:
        self.length, self.pad_id, self.end_id = length, pad_id, end_id
        self._tokenizer = tokenizer

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens in the vocabulary."""
        return self._tokenizer.get_vocab_size()

    def token(self, token_id: int) -> str:
        """Return the text of a token."""
        return self._tokenizer.id_to_token(token_id) or ""

    def __call__(self, text: str) -> Tokens:
        """Return the ids of `text`, and the text that was cut off."""
        ids = self._tokenizer.encode(self.cleaned(text)).ids
        cut = ""
        if len(ids) > self.length:
            cut = self.readable(self._tokenizer.decode(ids[self.length - 1 : -1])).strip()
            ids = [*ids[: self.length - 1], self.end_id]
        return Tokens(ids=ids + [self.pad_id] * (self.length - len(ids)), used=len(ids), cut=cut)

    def cleaned(self, text: str) -> str:
        """Clean a text as in the model's training."""
        return text

    def readable(self, decoded: str) -> str:
        """Convert decoded tokens to text as a user would write it."""
        return decoded


def padded_length(folder: Path, length: int) -> int:
    """Return the number of token ids per text: `length`, or the tokenizer's model_max_length if that is smaller.

    folder: the tokenizer's folder. length: number of tokens that the text encoder takes. Raises WeightsError.
    """
    path = folder / "tokenizer_config.json"
    own = read_json(path).get("model_max_length") if path.exists() else None
    if own is None:
        return length
    # each text has a start and an end token
    if type(own) not in (int, float) or not own >= 2:
        problem = f"has model_max_length: {own}"
        raise WeightsError("model", path, "set it to a number of tokens, such as 77", problem=problem)
    return int(min(length, own))
