"""What was measured of a model is found where it was written, its own folder first, and a broken file is told of."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from omnimuse.core.caches import Fits, TeaFit, cache_named, completed
from omnimuse.core.errors import ConfigError, ModelError
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.loader.fits import NAME, measured_fits, place_of, read_fits, write_fits

FITS = Fits(TeaFit((1.5, -0.1), 0.3), (1.0, 1.1, 0.9), "taylorseer,threshold=0.1", dbcache=0.1, magcache=0.02)
EXPERTS = replace(
    FITS, experts=(("transformer", Fits(TeaFit((2.0,)), (1.0, 2.0))), ("transformer_2", Fits(TeaFit((3.0,)), (1.0,))))
)
PUBLISHED = Fits(TeaFit((9.0,), 0.9))


@pytest.fixture
def checkpoint(z_image_folder: Path, tmp_path: Path) -> Checkpoint:
    shutil.copytree(z_image_folder, tmp_path / "model")
    return Checkpoint(tmp_path / "model")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_fits(tmp_path / "a" / "cache.json", FITS, {"prompts": ["x"]})
    assert read_fits(tmp_path / "a" / "cache.json") == FITS
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["cache.json"]


def test_each_of_several_networks_has_its_own_polynomial_and_ratios_and_all_else_is_shared(tmp_path: Path) -> None:
    write_fits(tmp_path / NAME, EXPERTS, {})
    assert (found := read_fits(tmp_path / NAME)) == EXPERTS
    assert found.of("transformer_2") == replace(EXPERTS, tea=TeaFit((3.0,), 0.3), ratios=(1.0,))
    assert found.of("another") == EXPERTS


def test_a_file_of_an_earlier_version_has_the_documented_thresholds(tmp_path: Path) -> None:
    write_fits(tmp_path / NAME, FITS, {})
    content = json.loads((tmp_path / NAME).read_text())
    del content["dbcache"], content["magcache"]
    (tmp_path / NAME).write_text(json.dumps(content))
    assert read_fits(tmp_path / NAME) == replace(FITS, dbcache=Fits.dbcache, magcache=Fits.magcache)


def test_the_model_s_own_file_comes_first_then_this_user_s_then_what_is_published(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    assert measured_fits(checkpoint, PUBLISHED, mine) == PUBLISHED
    write_fits(place_of(checkpoint, mine), FITS, {})
    assert measured_fits(checkpoint, PUBLISHED, mine) == FITS
    own = Fits(TeaFit((2.0,), 0.5), (1.0,), "none")
    write_fits(checkpoint.folder / NAME, own, {})
    assert measured_fits(checkpoint, PUBLISHED, mine) == own


def test_a_checkpoint_whose_files_changed_is_another(checkpoint: Checkpoint, tmp_path: Path) -> None:
    write_fits(place_of(checkpoint, tmp_path), FITS, {})
    (checkpoint.folder / "more.txt").write_text("x")
    assert measured_fits(checkpoint, PUBLISHED, tmp_path) == PUBLISHED


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"auto": \n"a\n"}', r"this model \(it is no JSON at line 2, column 3\); measure the model again"),
        (b'{"auto": "\xff"}', r"\(it is no UTF-8: byte 10 cannot be read\)"),
        (b"[" * 100_000, r"\(it is nested too deep\)"),
    ],
)
def test_what_is_wrong_with_a_damaged_file_is_said_in_our_words(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(ModelError, match=said):
        read_fits(tmp_path / NAME)


@pytest.mark.parametrize(
    "change",
    [
        {"coefficients": []},
        {"coefficients": [1e999]},
        {"coefficients": [10**350]},
        {"threshold": 10**350},
        {"coefficients": "12"},
        {"ratios": "x"},
        {"experts": []},
        {"experts": {"transformer": []}},
        {"experts": {"transformer": {"coefficients": [1.0]}}},
        {"ratios": [float("nan")]},
        {"ratios": [True]},
        {"auto": "slow"},
        {"auto": "auto"},
        {"threshold": None},
        {"threshold": float("nan")},
        {"threshold": -1},
        {"dbcache": []},
        {"dbcache": -1},
        {"magcache": float("inf")},
    ],
)
def test_a_file_that_is_something_else_is_refused_with_what_to_do(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / NAME
    write_fits(path, FITS, {})
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match="measure the model again"):
        read_fits(path)


def test_a_file_that_cannot_be_used_is_told_to_who_asks_for_what_it_was_to_say(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    write_fits(checkpoint.folder / NAME, FITS, {}, "FluxPipeline")
    fits = measured_fits(checkpoint, PUBLISHED, tmp_path)
    assert "was measured of 'FluxPipeline', and this is ZImagePipeline" in fits.flaw
    for choice in ("none", "dbcache,threshold=0.1"):
        assert completed(cache_named(choice), fits).kind == cache_named(choice).kind
    for choice in ("auto", "fast", "teacache", "magcache", "dbcache", "taylorseer"):
        with pytest.raises(ConfigError, match="measure the model again"):
            completed(cache_named(choice), fits)
    write_fits(checkpoint.folder / NAME, FITS, {}, "ZImagePipeline")
    assert measured_fits(checkpoint, PUBLISHED, tmp_path) == FITS


@pytest.mark.parametrize("content", ["", "[]", "{}", "{"])
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / NAME).write_text(content)
    with pytest.raises(ModelError, match="measure the model again"):
        read_fits(tmp_path / NAME)
