"""What stands in quotation marks becomes tokens letter by letter, as in the reference."""

from __future__ import annotations

import pytest
from diffusers.pipelines.longcat_image.pipeline_longcat_image import split_quotation

from omnimuse.models.longcat_image.pipeline import quotations

PROMPTS = (
    "",
    "a plain one",
    "a sign that says 'Open' and \"Closed\"",
    "it's mine, it's 'hers'",
    "“双引号”里的字 and ‘单引号’",
    "an 'unfinished quote",
    "''",
    "\"it's 'nested'\" twice \"it's\"",
    "'a''b'",
)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_quotations_are_found_as_in_the_reference(prompt: str) -> None:
    expected = []
    for part, quoted in split_quotation(prompt):
        expected += list(part) if quoted else [part]
    assert quotations(prompt) == expected


def test_two_words_with_apostrophes_stay_what_they_are() -> None:
    """The reference confuses such words with each other: its stand-in for the second contains that for the first."""
    assert quotations("it isn't mine, it's 'hers'") == ["it isn't mine, it's ", *"'hers'"]
