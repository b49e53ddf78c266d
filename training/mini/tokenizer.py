"""Build the tokenizer: byte-pair vocab.json and merges.txt in which every word of the world's grammar is one
token.

Other words still have an encoding, by bytes and by shared pieces. Prompts have at most 16 tokens.
"""

import argparse
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import world
from common import WORK

LENGTH = 16
START, END = "<|startoftext|>", "<|endoftext|>"
MORE_WORDS = "a an the and with of in on over under at one is"


def words() -> list[str]:
    """Every word that captions can have, sorted."""
    phrases = [MORE_WORDS, *world.COLOURS, *world.SUBJECTS, *world.MOTIONS, *world.BACKGROUNDS.values()]
    for variants in (*world.MOTION_VARIANTS.values(), *world.BACKGROUND_VARIANTS.values()):
        phrases.extend(variants)
    return sorted({word for phrase in phrases for word in phrase.split()})


def byte_symbols() -> list[str]:
    """Return the 256 characters that stand for bytes in byte-level byte-pair encoding."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    extra = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + i) for i in range(len(extra))]


def learn_merges(vocabulary: list[str]) -> list[tuple[str, str]]:
    """Return the merges, most frequent first, that make each word one symbol (its last character carries </w>)."""
    pieces = {word: [*word[:-1], word[-1] + "</w>"] for word in vocabulary}
    merges = []
    while True:
        pairs = Counter(pair for symbols in pieces.values() for pair in pairwise(symbols))
        if not pairs:
            return merges
        left, right = max(pairs.items(), key=lambda item: (item[1], item[0]))[0]
        merges.append((left, right))
        for word, symbols in pieces.items():
            merged: list[str] = []
            for symbol in symbols:
                if merged and merged[-1] == left and symbol == right:
                    merged[-1] = left + right
                else:
                    merged.append(symbol)
            pieces[word] = merged


def build(folder: Path) -> int:
    """Write the tokenizer's files; returns the size of the vocabulary."""
    merges = learn_merges(words())
    base = byte_symbols()
    symbols = [*base, *(symbol + "</w>" for symbol in base), *(left + right for left, right in merges)]
    vocabulary = [*dict.fromkeys(symbols), START, END]
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": LENGTH,
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
        "do_lower_case": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    index = {symbol: i for i, symbol in enumerate(vocabulary)}
    (folder / "vocab.json").write_text(json.dumps(index, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges), ""]))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    return len(vocabulary)


def main() -> None:
    """Build it and check that each word is one token."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=WORK)
    args = parser.parse_args()
    folder = args.work / "tokenizer"
    size = build(folder)
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder)
    split = [word for word in words() if len(tokenizer(word).input_ids) != 3]
    print(f"{size} symbols, {len(words())} words, not one token: {split or 'none'}")
    print(tokenizer("a red ball bouncing over green grass", padding="max_length").input_ids)


if __name__ == "__main__":
    main()
