"""Token ids against transformers, and cleaned prompts against WanPipeline."""

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from diffusers.pipelines.wan import pipeline_wan
from oracles.wan_text import TEXT, save_tiny_tokenizer
from transformers import T5TokenizerFast

from vinfinity.errors import WeightsError
from vinfinity.models.padded_tokenizer import padded_length
from vinfinity.models.wan import tokenizer as own_tokenizer
from vinfinity.models.wan.tokenizer import clean_prompt, load_tokenizer

PROMPTS = [
    "",
    " ",
    "a red ball",
    "  a   red\tball\nbounces  ",
    "A RED Ball, bouncing; over: green-grass!",
    "the words </s> and <pad> and <unk> in a prompt",
    "fish &amp; chips, 5 &lt; 6, &quot;twice&quot; &amp;amp; &amp;lt;b&amp;gt; &nbsp; end",
    "&#39;numbers&#39; &#x1F600; &notanentity; &",
    "schÃ¶n mojibake â€” and â€œquotesâ€\x9d",
    "“smart quotes” and ‘single’ — dash … ellipsis",
    "ﬁne ﬂow ｆｕｌｌ ｗｉｄｔｈ ℃ ½",
    "a\u00a0b a\u3000b \ufeffbom a\u2028b \u0085 next a\u200bb",
    "bell\x07 null\x00 escape\x1b[31mred\x1b[0m delete\x7f",
    "cafe\u0301 A\u030angstro\u0308m",
    "红色的球在绿草上弹跳",
    "красный мяч прыгает по зелёной траве",
    "😀 🚗 👩‍👩‍👧‍👦 🏳️‍🌈",
    "red " * 200,
    "x" * 900,
    TEXT,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize("length", [16, 512])
def test_token_ids_match_transformers(folder: Path, length: int) -> None:
    """As WanPipeline calls its tokenizer."""
    theirs, ours = T5TokenizerFast.from_pretrained(folder), load_tokenizer(folder, length=length)
    for prompt in PROMPTS:
        expected = theirs(
            [pipeline_wan.prompt_clean(prompt)],
            padding="max_length",
            max_length=length,
            truncation=True,
            add_special_tokens=True,
            return_attention_mask=True,
        )
        tokens = ours(prompt)
        assert tokens.ids == expected["input_ids"][0], prompt
        assert tokens.used == sum(expected["attention_mask"][0])
        assert len(tokens.ids) == length


def test_the_part_that_does_not_fit_is_named(folder: Path) -> None:
    tokenizer = load_tokenizer(folder, length=8)
    prompt = "a red ball bounces over green grass"
    tokens = tokenizer(prompt)
    assert tokens.used == 8
    assert tokens.ids[-1] == tokenizer.end_id
    assert tokens.cut
    assert prompt.endswith(tokens.cut)
    assert load_tokenizer(folder, length=64)(prompt).cut == ""


def test_padding_follows_the_end_token(folder: Path) -> None:
    tokenizer = load_tokenizer(folder, length=32)
    tokens = tokenizer("a red ball")
    assert tokens.ids[tokens.used - 1] == tokenizer.end_id == 1
    assert set(tokens.ids[tokens.used :]) == {tokenizer.pad_id} == {0}
    assert tokenizer.token(1) == "</s>"
    assert tokenizer.vocabulary_size > 40


def test_its_own_length_limits_that_of_the_encoder(tmp_path: Path) -> None:
    save_tiny_tokenizer(tmp_path, model_max_length=24)
    assert load_tokenizer(tmp_path, length=512).length == 24
    assert load_tokenizer(tmp_path, length=16).length == 16


@pytest.mark.parametrize("length", ["abc", [77], -1, 1, True], ids=str)
def test_a_length_that_is_no_number_of_tokens_is_named(length: object, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({"model_max_length": length}), encoding="utf-8")
    with pytest.raises(WeightsError, match=re.escape(f"{path} has model_max_length: {length}")):
        padded_length(tmp_path, 512)


# transformers writes 1e30 where there is no limit
@pytest.mark.parametrize("length", [None, 10**30, 1e30], ids=str)
def test_without_a_length_of_its_own_the_encoders_counts(length: object, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": length}), encoding="utf-8"
    )
    assert padded_length(tmp_path, 77) == 77


# ---- cleaning ----


@pytest.mark.skipif(importlib.util.find_spec("ftfy") is None, reason="ftfy is not installed")
def test_prompts_are_cleaned_as_in_wan_pipeline() -> None:
    for prompt in PROMPTS:
        assert clean_prompt(prompt) == pipeline_wan.prompt_clean(prompt)
    assert clean_prompt("schÃ¶n &amp;amp;  good") == "schön & good"


def test_prompts_are_cleaned_without_ftfy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_wan, "is_ftfy_available", lambda: False)
    monkeypatch.setattr(own_tokenizer.importlib.util, "find_spec", lambda _: None)
    for prompt in PROMPTS:
        assert clean_prompt(prompt) == pipeline_wan.prompt_clean(prompt)


# ---- damaged folders ----


def without_file(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def only_spiece(folder: Path) -> None:
    without_file(folder)
    (folder / "spiece.model").write_bytes(b"\x0a")


def cut_off(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:500])


def without_end(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("</s>", "<end>"))


def of_a_list(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(json.dumps([]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_file, "has no tokenizer; add tokenizer.json"),
        (only_spiece, "has spiece.model, but no tokenizer.json; make it with transformers"),
        (cut_off, "cannot be read ("),
        (of_a_list, "cannot be read ("),
        (without_end, "lacks its special tokens <pad>, </s>"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_unusable_tokenizers_are_one_line(
    damage: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    damage(save_tiny_tokenizer(tmp_path))
    with pytest.raises(WeightsError) as raised:
        load_tokenizer(tmp_path, length=512)
    line = str(raised.value)
    assert line.startswith(f"model: {tmp_path}")
    assert message in line
    assert "\n" not in line
