"""What `make gpu-wheels` collects is enough: with it, torch and torch's usual company the tests of a GPU begin."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tools.gpu_wheels import NEEDED, ROOT, USUAL, asked, plain

TESTS = ("tests/gpu", "tests/unit/offload/test_layerwise.py")
"""Where those of a GPU are, as `make gpu` names them."""


def requires(of: Distribution) -> list[Requirement]:
    """What a package asks for on this machine."""
    found = [Requirement(line) for line in of.requires or ()]
    return [each for each in found if each.marker is None or each.marker.evaluate({"extra": ""})]


def with_what_they_ask_for(names: tuple[str, ...]) -> dict[str, Distribution]:
    """The packages by their names, what they ask for, and so on."""
    found, left = dict[str, Distribution](), [plain(name) for name in names]
    while left:
        if (name := left.pop()) not in found:
            found[name] = distribution(name)
            left += [plain(each.name) for each in requires(found[name])]
    return found


@pytest.fixture(scope="module")
def usual() -> dict[str, Distribution]:
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("such machines are Linux on x86_64, for which alone triton is installed")
    return with_what_they_ask_for(USUAL)


@pytest.fixture
def bare(tmp_path: Path, usual: dict[str, Distribution]) -> Path:
    """A place for packages that has those, as they are installed here, and no others."""
    for each in (*usual.values(), *map(distribution, NEEDED)):
        for top in {file.parts[0] for file in each.files or ()} - {"..", "__pycache__"}:
            if not (tmp_path / top).exists():
                (tmp_path / top).symlink_to(Path(str(each.locate_file(top))))
    return tmp_path


@pytest.mark.costly
@pytest.mark.slow
def test_a_machine_with_torch_and_what_is_brought_begins_its_tests_and_its_figures(bare: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(bare), str(ROOT)])}
    tests = ["-m", "pytest", *TESTS, "--collect-only", "-q", "-p", "no:cacheprovider"]
    for given in (tests, ["-W", "ignore", "-m", "benchmarks.gpu", "--help"]):
        command = [sys.executable, "-S", *given]  # nothing of the environment that this runs in
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    hidden = "import importlib.util as u; assert u.find_spec('msgspec') and not u.find_spec('starlette')"
    subprocess.run([sys.executable, "-S", "-c", hidden], env=environment, check=True)


def test_what_the_brought_packages_ask_for_is_brought_or_usual(usual: dict[str, Distribution]) -> None:
    there = {*map(plain, NEEDED), *usual}
    assert {plain(each.name) for name in NEEDED for each in requires(distribution(name))} <= there


def test_what_wheels_ask_of_what_is_there_is_told_in_their_words(tmp_path: Path) -> None:
    lines = {"A_one": ["b.two>=3; extra == 'all'", "C>=1,<2", "b-two (>=1)"], "b_two": ["tokenizers<1,>=0.2"]}
    for name, wanted in lines.items():
        with zipfile.ZipFile(tmp_path / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            told = "".join(f"Requires-Dist: {each}\n" for each in wanted)
            wheel.writestr(f"{name}-1.0.dist-info/METADATA", f"Name: {name}\n{told}\nRequires-Dist: of its description")
    assert asked(tmp_path) == ["C>=1,<2", "tokenizers<1,>=0.2"]
