"""Texts that come in pieces are cut at the same places however they come, and in a time that grows with them."""

from __future__ import annotations

import random
import time

import pytest

from omnimuse.server.errors import ApiError
from omnimuse.server.translate.sentences import Cut, Sentences, cut_of

TEXTS: tuple[tuple[Cut, str, list[str]], ...] = (
    ("sentence", "A star. It is 3.5 times larger! Why?", ["A star.", "It is 3.5 times larger!", "Why?"]),
    (
        "sentence",
        'He said "No." and (really?) went\nNext line',
        ['He said "No."', "and (really?)", "went", "Next line"],
    ),
    ("sentence", "你好。「好！」再见", ["你好。", "「好！」", "再见"]),
    ("sentence", "नमस्ते। कैसे हो?", ["नमस्ते।", "कैसे हो?"]),
    ("sentence", "... well... yes", ["well...", "yes"]),
    ("clause", "red, blue; 1,000 green: 红，绿", ["red,", "blue;", "1,000 green:", "红，", "绿"]),
    ("none", "one. two. three", ["one. two. three"]),
)


@pytest.mark.parametrize(("cut", "text", "expected"), TEXTS)
def test_a_text_is_cut_where_its_sentences_end_however_it_comes(cut: Cut, text: str, expected: list[str]) -> None:
    draw = random.Random(1)
    for longest in (1, 2, 5, len(text)):
        sentences, found, at = Sentences(cut), list[str](), 0
        while at < len(text):
            size = draw.randint(1, longest)
            found += sentences.add(text[at : at + size])
            at += size
        assert [*found, *filter(None, [sentences.rest()])] == expected
        assert len(sentences) == 0


def test_what_is_no_word_is_not_said() -> None:
    sentences = Sentences()
    assert sentences.add(" ... !\n - ") == [] and sentences.rest() == ""


@pytest.mark.parametrize("letter", ["a", ".", "。", '"', "\n", ". "])
def test_a_text_without_an_end_takes_a_time_that_grows_with_it(letter: str) -> None:
    sentences, began = Sentences(), time.monotonic()
    for _ in range(20_000):
        sentences.add(letter)
    assert time.monotonic() - began < 5


def test_a_cut_has_one_of_three_names() -> None:
    assert cut_of("clause") == "clause"
    with pytest.raises(ApiError, match="none, sentence, clause"):
        cut_of(["sentence"])
