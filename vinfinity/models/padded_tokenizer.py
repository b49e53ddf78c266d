"""Text to token ids, padded or cut to one length: what the tokenizers of all families share."""

from tokenizers import Tokenizer

from vinfinity.models.family import Tokens


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
