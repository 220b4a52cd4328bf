"""Settings of another engine: a value that changes nothing is taken, another one says what to do instead."""

from __future__ import annotations

import pytest

from omnimuse.core.errors import ConfigError
from omnimuse.core.foreign import SETTINGS, note_of


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_so_anyway_is_taken_without_a_word_and_anything_else_is_void_or_refused(name: str) -> None:
    setting = SETTINGS[name]
    assert [note_of(name, value) for value in setting.anyway] == [""] * len(setting.anyway)
    if setting.void:
        assert note_of(name, "other", "stage 1: ") == f"stage 1: {name}: {setting.why}"
    else:
        with pytest.raises(ConfigError) as refused:
            note_of(name, "other", "stage 1: ")
        assert str(refused.value).startswith(f"stage 1: {name}='other' is not honoured here; leave it out")
        assert setting.why in str(refused.value)


@pytest.mark.parametrize(("name", "value"), [("tensor_parallel_size", True), ("use_hsdp", 0), ("env", {"A": "1"})])
def test_a_number_is_no_truth_value_and_what_holds_something_is_not_empty(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        note_of(name, value)
