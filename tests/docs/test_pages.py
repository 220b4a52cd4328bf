"""What the pages tell people to type works as it is pasted, in that order, in a fresh clone."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import yaml

from omnimuse.cli.app import parser_of
from omnimuse.cli.layered import options_of, read_layered
from tests.checkpoints import wan
from tests.docs.blocks import FILES, PAGES, ROOT, RUN, Block, blocks
from tests.docs.clone import Shell, commands, make_clone, python

FIRST = "README.md"
COMMAND = re.compile(r"^(omnimuse|make|python|pip|curl) |\bomni\.\w+\(", re.MULTILINE)
"""How a line begins that people type, or what they write in Python."""
EXAMPLES = ("draw", "many", "from_picture", "service")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One clone for all pages: what the first screen made is there for the next."""
    return make_clone(tmp_path_factory.mktemp("fresh") / "omnimuse")


def run_of(page: str) -> list[Block]:
    """The blocks of a page that are run."""
    return [block for block in blocks(page) if block.language in RUN and not block.excuse]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_first_command_that_people_are_told_works_as_pasted(clone: Path) -> None:
    as_pasted(run_of(FIRST)[:1], Shell(clone, activated=False))
    assert (clone / "demo.png").exists()


@pytest.mark.costly
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", [page for page in PAGES if run_of(page)])
def test_what_a_page_says_to_type_works_as_pasted(page: str, clone: Path) -> None:
    as_pasted(run_of(page), Shell(clone, activated=page != FIRST))


def as_pasted(run: list[Block], shell: Shell) -> None:
    for block in run:
        if block.language == "sh":
            shell.run(block.text)
    if programs := [block.text for block in run if block.language == "python"]:
        python(programs, shell.clone, shell)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_is_excused_or_shows_a_file(page: str) -> None:
    unknown = [block for block in blocks(page) if block.language not in (*RUN, *FILES)]
    assert not unknown, "give the block a language that is run, or one that shows a file"
    shown = [block for block in blocks(page) if block.language in FILES and COMMAND.search(block.text)]
    assert not shown, "what people are to type is run, or excused"
    excused_for_nothing = [block for block in blocks(page) if block.excuse and block.language not in RUN]
    assert not excused_for_nothing


def unit(text: str) -> dict[str, dict[str, str]]:
    """A unit of systemd, by section: one setting a line; ValueError for a line that is none."""
    found: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        if head := re.fullmatch(r"\[(\w+)\]", line):
            section = found.setdefault(head[1], {})
        elif setting := re.fullmatch(r"([A-Z]\w+)=(.*)", line):
            section[setting[1]] = setting[2]
        elif line and not line.startswith("#"):
            raise ValueError(f"neither a section nor a setting: {line}")
    return found


SHOWN: Mapping[str, Callable[[str], object]] = {
    "ini": unit,
    "json": json.loads,
    "toml": tomllib.loads,
    "yaml": yaml.safe_load,
}
"""What reads a file that a block shows, where anything does."""


@pytest.mark.parametrize("page", PAGES)
def test_a_block_that_shows_a_file_is_one(page: str) -> None:
    for block in blocks(page):
        if read := SHOWN.get(block.language):
            assert read(block.text), f"{page}:{block.line}"


def test_files_for_operators_say_what_a_server_takes(tmp_path: Path) -> None:
    loud, quiet = parser_of("serve"), parser_of("serve", quiet=True)
    [service] = [unit(block.text)["Service"] for block in blocks("docs/serving.md") if block.language == "ini"]
    program, command, *words = shlex.split(service["ExecStart"])
    assert (Path(program).name, command) == ("omnimuse", "serve")
    assert read_layered(loud, quiet, words, {}).data == Path("/var/lib/omnimuse")
    assert service["User"] and "Restart" in service
    [options] = [block.text for block in blocks("docs/serving.md") if block.language == "toml"]
    (tmp_path / "serve.toml").write_text(options)
    read = vars(read_layered(loud, quiet, ["--config", str(tmp_path / "serve.toml")], {}))
    known = options_of(loud)
    assert {name: read[known[name].dest] for name in tomllib.loads(options)} == tomllib.loads(options)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_to_a_file_of_ours_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def tracked(*patterns: str) -> list[str]:
    """The files of the repository that one of the patterns matches, or all."""
    told = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return told.stdout.split()


def test_what_people_make_who_follow_the_first_page_leaves_their_clone_as_it_was() -> None:
    text = (ROOT / FIRST).read_text(encoding="utf-8")
    made = re.findall(r'-o ([\w.]+/?)|save\("([\w.]+)"\)', text)
    names = sorted({given or saved for given, saved in made} | {"demo-1.png"})
    assert len(names) > 5
    told = subprocess.run(["git", "check-ignore", *names], cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.stdout.split() == names


ELSEWHERE = {"NAME.py", "parity.md", "inferencer.py", "siglip_navit.py", "qwen2_navit.py"}
"""Files that readers write themselves, and those of the code that a model was published with."""


def test_every_file_that_a_page_or_a_docstring_names_is_there() -> None:
    ends = {"/".join(Path(file).parts[at:]) for file in tracked() for at in range(len(Path(file).parts))}
    naming = [*PAGES, *tracked("*.py")]
    lost = {
        (page, name)
        for page in naming
        for name in re.findall(r"`((?:\w+/)*\w+\.(?:py|md|toml))`", (ROOT / page).read_text(encoding="utf-8"))
        if name not in ends and Path(name).name not in ELSEWHERE
    }
    assert not lost


def test_every_room_stands_once_in_the_table_of_rooms() -> None:
    lines = (ROOT / "docs/architecture.md").read_text().splitlines()
    rows = [name for line in lines if line.startswith("| `") for name in re.findall(r"`(\w+)/`", line.split("|")[1])]
    assert sorted(rows) == sorted({Path(file).parts[1] for file in tracked("omnimuse/*/*")})


@pytest.mark.costly
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_as_it_is(name: str, clone: Path) -> None:
    Shell(clone).run(f"{sys.executable} -W error examples/{name}.py")


@pytest.mark.costly
def test_the_example_of_a_video_runs_with_a_model_of_videos(clone: Path, tmp_path: Path) -> None:
    model = wan.build(tmp_path / "tiny", "2.1")
    Shell(clone).run(f"{sys.executable} -W error examples/video.py {model} 5 32")


@pytest.mark.costly
def test_the_cells_of_the_notebook_run_in_order(clone: Path) -> None:
    cells = json.loads((ROOT / "examples/notebook.ipynb").read_text())["cells"]
    python(["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"], clone, Shell(clone))


def test_every_example_is_told_of_and_tested() -> None:
    there = {path.stem for path in (ROOT / "examples").glob("*.py")}
    told = set(re.findall(r"`(\w+)\.py`", (ROOT / "examples/README.md").read_text()))
    assert there == told == {*EXAMPLES, "video"}


def test_commands_lose_their_comments_and_keep_their_lines_together() -> None:
    text = "a b    # why\n# nothing\n\nc \\\n  d '#e'\n"
    assert [command.split() for command in commands(text)] == [["a", "b"], ["c", "d", "'#e'"]]


def test_a_command_that_fails_fails(clone: Path) -> None:
    with pytest.raises(AssertionError, match="no such thing"):
        Shell(clone).run("echo no such thing; false")
    with pytest.raises(AssertionError, match="ValueError"):
        python(["a = 1", "raise ValueError(a)"], clone, Shell(clone))


def test_the_help_s_examples_are_commands_that_exist() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "omnimuse", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    examples = re.findall(r"^  omnimuse (\w+)", done.stdout, re.MULTILINE)
    assert {"generate", "explain", "doctor"} <= set(examples)
