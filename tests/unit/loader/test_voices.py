"""Voices in a file that torch has saved: numbers are read, and nothing is run."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from omnimuse.core.errors import ModelError
from omnimuse.loader.voices import VOICES, read_voices


def test_numbers_are_read_as_they_were_saved(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.float16, torch.float64, torch.int64):
        whole = torch.arange(24).to(dtype).view(2, 3, 4)
        torch.save({"A": {"all": whole, "part": whole[1:], "n": 7, "none": whole[:0]}}, tmp_path / VOICES)
        found = read_voices(tmp_path / VOICES)["A"]
        assert found == {"all": whole.tolist(), "part": whole[1:].tolist(), "n": 7, "none": []}


class _Runs:
    """Something that would run when a pickle is opened."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("run",)


@pytest.mark.parametrize("made", [{"A": {"cond": _Runs()}}, {"A": torch.nn.Linear(1, 1)}, [1], {"A": 1}])
def test_of_voices_only_numbers_are_read(made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(made, tmp_path / VOICES)
    with pytest.raises(ModelError):
        read_voices(tmp_path / VOICES)
    assert not capsys.readouterr().out


def test_what_is_damaged_or_turned_is_refused(tmp_path: Path) -> None:
    (tmp_path / VOICES).write_bytes(b"no archive")
    with pytest.raises(ModelError, match="cannot be read as voices"):
        read_voices(tmp_path / VOICES)
    torch.save({"A": {"cond": torch.zeros(2, 3).T}}, tmp_path / VOICES)
    with pytest.raises(ModelError, match="not contiguous"):
        read_voices(tmp_path / VOICES)
    with zipfile.ZipFile(tmp_path / VOICES, "w") as archive:
        archive.writestr("x/other.txt", "")
    with pytest.raises(ModelError, match="cannot be read as voices"):
        read_voices(tmp_path / VOICES)


def test_more_numbers_than_voices_have_are_refused(tmp_path: Path) -> None:
    many = torch.zeros(1000, 1000)
    torch.save({str(number): {"cond": many} for number in range(5)}, tmp_path / VOICES)
    with pytest.raises(ModelError, match="more than 4000000 numbers"):
        read_voices(tmp_path / VOICES)
