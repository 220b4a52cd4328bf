"""`omnimuse simulate`: a load on a fleet, from the command line to figures, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from omnimuse.cli.app import main

ROOT = Path(__file__).resolve().parents[3]
FLEET = str(ROOT / "examples" / "fleet.json")


def test_a_load_is_simulated_and_told_to_people_and_in_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--rate", "2", "--duration", "20", "--replicas", "2", "--target", "3x", "--mix", "512x512:2,1024x1024"]
    assert main(["simulate", FLEET, *words, "--compare", "--json", str(tmp_path / "figures.json")]) == 0
    said = capsys.readouterr().out
    assert "% requests in time over first in, first out" in said and "deciding, admission" in said
    ours, fifo = json.loads((tmp_path / "figures.json").read_text())
    assert (ours["policy"], fifo["policy"]) == ("ours", "fifo") and ours["sent"] == fifo["sent"] > 0
    assert ours["ok"] + ours["refused"] + ours["late"] + ours["lost"] == ours["sent"]


def test_no_file_is_replaced_without_being_told_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "kept.json"
    file.write_text("mine")
    load = ["--rate", "2", "--duration", "2", "--json", str(file)]
    for words in ([FLEET, *load], [str(file), "--measure", "--mix", "64x64"]):
        assert main(["simulate", *words]) == 2
        assert "kept.json is there already; choose another name, or --overwrite" in capsys.readouterr().err
        assert file.read_text() == "mine"
    assert main(["simulate", FLEET, *load, "--overwrite"]) == 0 and json.loads(file.read_text())


def test_how_many_replicas_are_enough_is_looked_for(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--rate", "4", "--duration", "20", "--target", "3x", "--mix", "512x512", "--enough", "0.95"]
    assert main(["simulate", FLEET, *words]) == 0
    assert "serve 95.0% in time, and one less does not" in capsys.readouterr().out


def test_a_fleet_that_grows_stands_beside_fixed_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--rate", "4", "--duration", "60", "--target", "3x", "--max-replicas", "4", "--grow-after", "1"]
    assert main(["simulate", FLEET, *words, "--mix", "512x512", "--json", str(tmp_path / "figures.json")]) == 0
    assert "ours, 1 to 4" in (said := capsys.readouterr().out) and "replica-seconds" in said
    moving, least, most = json.loads((tmp_path / "figures.json").read_text())
    assert least["replicas"] == least["most_replicas"] == 1 and most["most_replicas"] == 4
    assert least["replica_seconds"] < moving["replica_seconds"] < most["replica_seconds"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "--rate R says how many come"),
        (["--rate", "1", "--mix", "256x256"], "has no kind '256x256'; it has 512x512, 1024x1024, video"),
        (["--rate", "1", "--ranks", "8"], "--ranks 8: the table of .* does not tell what so many take"),
        (["--rate", "1", "--target", "soon"], "--target soon is not understood"),
        (["--rate", "1", "--enough", "0.9"], "--enough wants to know what is in time"),
        (["--rate", "0"], "--rate 0 is not allowed"),
        (["--rate", "1", "--max-replicas", "4", "--compare"], "--max-replicas is compared with fixed numbers"),
        (
            ["--rate", "1", "--replicas", "4", "--max-replicas", "2"],
            "--max-replicas 2 is fewer than the 4 of --replicas",
        ),
        (["--measure"], "--measure wants to know of what"),
    ],
)
def test_a_load_that_makes_no_sense_is_refused(words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", FLEET, *words]) == 2
    said = capsys.readouterr().err
    assert why.split(".*")[0] in said and why.split(".*")[-1] in said
