"""Text to token ids, padded or cut to one length: what the tokenizers of all families share."""

from pathlib import Path

from tokenizers import Tokenizer

from vinfinity.errors import WeightsError
from vinfinity.models.family import Tokens
from vinfinity.system.safetensors import read_json


class PaddedTokenizer:
    """A tokenizer that puts an end token behind the text. length: token ids per text."""

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
        ids = self._tokenizer.encode(self.cleaned(text)).ids
        cut = ""
        if len(ids) > self.length:
            cut = self.readable(self._tokenizer.decode(ids[self.length - 1 : -1])).strip()
            ids = [*ids[: self.length - 1], self.end_id]
        return Tokens(ids=ids + [self.pad_id] * (self.length - len(ids)), used=len(ids), cut=cut)

    def cleaned(self, text: str) -> str:
        """A text as the model was given it in training."""
        return text

    def readable(self, decoded: str) -> str:
        """Decoded tokens as a user would write them."""
        return decoded


def padded_length(folder: Path, length: int) -> int:
    """Token ids per text: `length`, or less if the tokenizer's own model_max_length is below it.

    length: tokens that the text encoder takes. folder: of the tokenizer. Raises WeightsError.
    """
    path = folder / "tokenizer_config.json"
    own = read_json(path).get("model_max_length") if path.exists() else None
    if own is None:
        return length
    # a start and an end token are part of each text
    if type(own) not in (int, float) or not own >= 2:
        problem = f"has model_max_length: {own}"
        raise WeightsError("model", path, "give a number of tokens, such as 77", problem=problem)
    return int(min(length, own))
