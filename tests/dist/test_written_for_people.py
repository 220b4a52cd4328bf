"""Text that vLLM writes, where people meet it: in the terminal, from a server, and with a picture that it asks for.

With a stand-in for vLLM, which follows a rule, and with vLLM where it is installed.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from omnimuse import Omni, WriterConfig
from omnimuse.cli.app import main
from tests.checkpoints import qwen3, talk_and_draw
from tests.dist.test_writers import PROMPTS, REAL, by_rule, python, real, tokens
from tests.server.whole_server import WholeServer

__all__ = ["python"]
PLACE = ("--dtype", "float32", "--device", "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen3.build(tmp_path_factory.mktemp("people") / "tiny", head=32)


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that writes and has pictures drawn."""
    return talk_and_draw.build(tmp_path_factory.mktemp("drawing") / "tiny", head=32)


def chatted(
    folder: Path, writer: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """What `omnimuse chat` answers to a line."""
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{PROMPTS[0]}\n"))
    assert main(["chat", str(folder), *PLACE, *writer, "--temperature", "0", "--max-tokens", "9"]) == 0
    return capsys.readouterr().out


def served(folder: Path, home: Path, writer: tuple[str, ...]) -> Any:
    """What a server answers to the same, and how many tokens it counts."""
    body = {"messages": [{"role": "user", "content": PROMPTS[0]}], "temperature": 0, "max_tokens": 9}
    with WholeServer(home / "server", str(folder), *PLACE, *writer) as server:
        server.wait_ready()
        told = server.ask("/v1/chat/completions", body)
    assert told.status == 200, told.json
    return told.json["choices"][0]["message"]["content"], told.json["usage"]["completion_tokens"]


@pytest.mark.costly(turns=3)
@pytest.mark.timeout(200)
def test_a_terminal_and_a_server_tell_what_it_writes(
    folder: Path,
    python: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    writer = ("--writer", "vllm", "--writer-python", python)
    with Omni(str(folder), device="cpu", dtype="float32", writer=WriterConfig("vllm", python)) as omni:
        how: dict[str, Any] = {"temperature": 0, "max_tokens": 9}
        [expected] = omni.generate([[{"role": "user", "content": PROMPTS[0]}]], how, progress=False)
    assert len(tokens(expected)) == 9
    assert chatted(folder, writer, monkeypatch, capsys) == f"{expected.text}\n"
    assert served(folder, tmp_path, writer) == (expected.text, 9)
    assert chatted(folder, (), monkeypatch, capsys) != f"{expected.text}\n", "this engine writes something else"


def test_a_picture_is_drawn_of_what_it_writes_or_none_is(drawing: Path, tmp_path: Path, python: str) -> None:
    writer = WriterConfig("vllm", python)
    with Omni(str(drawing), device="cpu", dtype="float32", writer=writer) as omni:
        [result] = omni.generate([PROMPTS[0]], max_tokens=9, num_inference_steps=1, progress=False)
    assert result.error is None and result.images == []
    together = tmp_path / "together"
    qwen3_of(drawing, together)
    assert tokens(result) == by_rule(together, PROMPTS[0], 9)


def qwen3_of(drawing: Path, together: Path) -> None:
    """What writes in the checkpoint `drawing`, as one of its own."""
    together.mkdir()
    for part in ("words", "model"):
        for file in (drawing / part).iterdir():
            (together / file.name).symlink_to(file)


# -- with vLLM itself --------------------------------------------------------------------------------------------


@real
def test_vllm_has_the_picture_drawn_that_this_engine_has_drawn(drawing: Path) -> None:
    how: dict[str, Any] = {"temperature": 0, "max_tokens": 9, "num_inference_steps": 1, "seed": 3}
    found = list[Any]()
    for writer in (WriterConfig("vllm", REAL), WriterConfig()):
        with Omni(str(drawing), device="cpu", dtype="float32", writer=writer) as omni:
            found += omni.generate([qwen3.PROMPTS[0]], how, progress=False)
    theirs, ours = found
    assert tokens(theirs) == tokens(ours) and theirs.text == ours.text
    assert theirs.images and theirs.images[0].tobytes() == ours.images[0].tobytes()


@real
def test_a_terminal_and_a_server_tell_what_vllm_writes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = ("--writer", "vllm", "--writer-python", REAL)
    own = chatted(folder, (), monkeypatch, capsys)
    assert chatted(folder, writer, monkeypatch, capsys) == own
    assert served(folder, tmp_path, writer) == (own.removesuffix("\n"), 9)
