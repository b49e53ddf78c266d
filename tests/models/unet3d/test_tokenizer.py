"""Token ids against transformers' CLIPTokenizer."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
from oracles.reference import MINI_TOKENIZER
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from vinfinity.errors import WeightsError
from vinfinity.models.unet3d.tokenizer import PATTERN, load_tokenizer

START, END = "<|startoftext|>", "<|endoftext|>"

TYPED = [
    "",
    " ",
    "\n\t  \r\n",
    "a red ball bouncing over green grass",
    "A RED Ball, Bouncing; over: green-grass!",
    "a   red\tball\nbouncing",
    "  leading and trailing  ",
    "it's, we're, I've, he'll, I'd, don't, I'm, 'tis, rock'n'roll, O'Neill's",
    "IT'S, WE'RE, I'M",
    "12345 67.89 3,000,000 1st 2nd ½ ² Ⅷ ٣ 五",
    "!!! ??? ... --- *** ((( ))) [a] {b} <c> @home #tag $5 100% a&b c/d e\\f ^ ~ ` |",
    "hello! wow!!! ! !a a!",
    "snake_case and CamelCase and kebab-case",
    "https://example.org/a?b=c&d=e#f",
    "user@example.org",
    "“smart quotes” and ‘single’ — dash – en … ellipsis",
    "café naïve façade Ångström über straße ŁÓDŹ",
    "cafe\u0301 nai\u0308ve A\u030angstro\u0308m",
    "e\u0301\u0302\u0303 a\u0323\u0307 \u0301 alone",
    "ﬁne ﬂow ℃ ™ ① ㍍ ｆｕｌｌ ｗｉｄｔｈ",
    "İstanbul IĞDIR ışık ΣΊΣΥΦΟΣ ǅ ẞ",
    "красный мяч прыгает по зелёной траве",
    "κόκκινη μπάλα",
    "כדור אדום",
    "كرة حمراء تقفز",
    "लाल गेंद हरी घास पर",
    "ลูกบอลสีแดง",
    "红色的球在绿草上弹跳",
    "緑の草の上で弾む赤いボール",
    "초록 잔디 위의 빨간 공",
    "\u1112\u1161\u11ab\u1100\u1173\u11af",
    "😀 🚗 🎈 ball",
    "😀😀😀",
    "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇫🇷 ☃️ ❤️",
    "a\u200bb a\u200db a\u00a0b a\u3000b \ufeffbom",
    "a\u2028b\u2029c \u0085 next",
    "bell\x07 null\x00 escape\x1b[31mred\x1b[0m delete\x7f",
    "\x00",
    "𝕭𝖔𝖑𝖉 𝓼𝓬𝓻𝓲𝓹𝓽 𐍈 𠜎",
    "\U000e0041 tag \U0010fffd private \ue000 unassigned \u0378",
    f"{START} a red ball {END}",
    END,
    START,
    f"a{END}b",
    f"{END} {END}{START}",
    "<|ENDOFTEXT|> <|StartOfText|> < |endoftext| >",
    "<|endoftext",
    "</w> a</w> b </w>",
    "red " * 200,
    "x" * 500,
    "antidisestablishmentarianism " * 20,
    "😀" * 120,
    "é" * 100,
    "1" * 100,
    "a, " * 100,
]


def random_prompts(count: int) -> Iterator[str]:
    """Words, symbols and code points of all kinds; some prompts are far too long."""
    chance = random.Random(0)
    words = [*topics["strings"].split(), *topics["import"].split(), "ball", "star", "sea", "grass"]
    pieces: tuple[Callable[[], str], ...] = (
        lambda: chance.choice(words),
        lambda: chance.choice(words).upper(),
        lambda: str(chance.randrange(10**6)),
        lambda: chance.choice(" \t\n!?.,;:'\"-_()[]{}<>|/\\@#$%^&*+=~`"),
        lambda: chr(chance.choice((chance.randrange(0x20, 0x250), chance.randrange(0x300, 0x370)))),
        lambda: chr(chance.choice((chance.randrange(0x370, 0xD800), chance.randrange(0xE000, 0xFFFE)))),
        lambda: chr(chance.randrange(0x1F300, 0x1FAFF)),
        lambda: chance.choice((START, END, "'s", "'LL", "\u200d", "\u0301")),
    )
    for _ in range(count):
        length = chance.choice((1, 3, 8, 20, 100))
        joint = chance.choice((" ", ""))
        yield joint.join(chance.choice(pieces)() for _ in range(length))


PROMPTS = [*TYPED, *random_prompts(400)]


def trained_vocabulary(folder: Path, size: int = 3000) -> Path:
    """Return a byte-level English vocabulary like CLIP's: bytes, bytes at the end of a word, merges, special tokens."""
    trainee = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trainee.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    trainee.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern_of_clip(), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trainee.train_from_iterator([topics[name] for name in sorted(topics)], trainer)
    merges = [tuple(merge) for merge in json.loads(trainee.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda c: (c != "!", c))
    entries = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges)]
    vocabulary = {entry: index for index, entry in enumerate(dict.fromkeys([*entries, START, END]))}
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def pattern_of_clip() -> Any:
    from tokenizers import Regex

    return Regex(PATTERN)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_vocabulary(tmp_path_factory.mktemp("tokenizers") / "english")


@pytest.fixture(scope="module")
def folders(vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tokenizer folders of every kind that published models have."""
    root = tmp_path_factory.mktemp("folders")
    made = {"mini": MINI_TOKENIZER}
    made["english"] = Path(shutil.copytree(vocabulary, root / "english"))
    write(made["english"] / "tokenizer_config.json", {"model_max_length": 77, "pad_token": END})
    # Stable Diffusion 2 pads with "!", as only special_tokens_map.json shows
    made["padded by !"] = Path(shutil.copytree(vocabulary, root / "exclamation"))
    write(made["padded by !"] / "tokenizer_config.json", {"model_max_length": 77, "pad_token": END})
    token = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    write(
        made["padded by !"] / "special_tokens_map.json",
        {
            "bos_token": {"content": START, **token},
            "eos_token": {"content": END, **token},
            "unk_token": {"content": END, **token},
            "pad_token": "!",
        },
    )
    for name, source in (("mini, tokenizer.json", "mini"), ("english, tokenizer.json", "english")):
        made[name] = root / name
        CLIPTokenizer.from_pretrained(made[source]).save_pretrained(made[name])
        assert (made[name] / "tokenizer.json").exists()
        for leftover in ("vocab.json", "merges.txt"):
            (made[name] / leftover).unlink(missing_ok=True)
    return made


def write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values), encoding="utf-8")


def test_there_are_enough_varied_prompts() -> None:
    assert len(set(PROMPTS)) >= 300
    assert {ord(c) >> 8 for prompt in PROMPTS for c in prompt} >= {0x00, 0x01, 0x03, 0x1F6}


@pytest.mark.parametrize(
    "kind", ["mini", "english", "padded by !", "mini, tokenizer.json", "english, tokenizer.json"]
)
@pytest.mark.parametrize("length", [77, 16])
def test_ids_match_transformers(kind: str, length: int, folders: dict[str, Path]) -> None:
    reference = CLIPTokenizer.from_pretrained(folders[kind])
    if kind == "padded by !":
        assert reference.pad_token == "!"
    ours = load_tokenizer(folders[kind], length=length)
    reach = min(length, reference.model_max_length)
    assert ours.length == reach
    for prompt in PROMPTS:
        expected = reference(prompt, padding="max_length", truncation=True, max_length=reach).input_ids
        assert ours(prompt).ids == expected, repr(prompt)


def test_a_realistic_vocabulary_keeps_common_words_whole(folders: dict[str, Path]) -> None:
    """So the comparison covers more than single bytes."""
    ours = load_tokenizer(folders["english"], length=77)
    vocabulary = json.loads((folders["english"] / "vocab.json").read_text(encoding="utf-8"))
    assert ours("the string object").ids[:5] == [
        vocabulary[token] for token in (START, "the</w>", "string</w>", "object</w>", END)
    ]


def test_padding_is_the_token_named_in_the_files(folders: dict[str, Path]) -> None:
    for kind, pad in (("english", END), ("padded by !", "!")):
        vocabulary = json.loads((folders[kind] / "vocab.json").read_text(encoding="utf-8"))
        ids = load_tokenizer(folders[kind], length=20)("the").ids
        assert ids == [vocabulary[START], vocabulary["the</w>"], vocabulary[END], *[vocabulary[pad]] * 17]


def test_text_that_does_not_fit_is_cut_and_reported(folders: dict[str, Path]) -> None:
    ours = load_tokenizer(folders["english"], length=6)
    tokens = ours("the string object is in the class of a module")
    assert len(tokens.ids) == 6
    assert tokens.ids[-1] == ours.end_id
    assert tokens.cut == "in the class of a module"
    assert ours("the string object is").cut == ""
    assert ours("the string object is in").cut == "in"


def test_a_cut_prompt_keeps_the_ids_of_its_beginning(folders: dict[str, Path]) -> None:
    ours = load_tokenizer(folders["english"], length=10)
    whole = load_tokenizer(folders["english"], length=77)
    for prompt in PROMPTS:
        long = whole(prompt).ids
        if end := ours(prompt).cut:
            assert ours(prompt).ids == [*long[:9], ours.end_id], repr(end)
        else:
            assert ours(prompt).ids == long[:10]


def test_length_is_limited_by_the_tokenizer(folders: dict[str, Path]) -> None:
    assert load_tokenizer(folders["mini"], length=77).length == 16
    assert load_tokenizer(folders["mini"], length=8).length == 8


@pytest.mark.parametrize("removed", ["vocab.json", "merges.txt"])
def test_missing_files_are_named(removed: str, vocabulary: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(vocabulary, tmp_path / "tokenizer"))
    (folder / removed).unlink()
    with pytest.raises(WeightsError, match=r"has no tokenizer; add vocab\.json and merges\.txt") as raised:
        load_tokenizer(folder, length=77)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("vocab.json", '{"a": 0, '),
        ("vocab.json", '{"a": 0, "b": 1}'),
        ("vocab.json", "[]"),
        ("merges.txt", "a b c d\n"),
        ("merges.txt", "#version: 0.2\nnot there\n"),
        ("tokenizer_config.json", "{"),
        ("special_tokens_map.json", '{"pad_token": "<|absent|>"'),
    ],
)
def test_damaged_files_are_refused_in_one_line(
    name: str, text: str, vocabulary: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(vocabulary, tmp_path / "tokenizer"))
    (folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(WeightsError) as raised:
        load_tokenizer(folder, length=77)
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_damaged_tokenizer_json_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model"', encoding="utf-8")
    with pytest.raises(WeightsError, match="cannot be read") as raised:
        load_tokenizer(tmp_path, length=77)
    assert "\n" not in str(raised.value)
