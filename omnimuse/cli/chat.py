"""Talk to a model that writes: type, and read its answer while it is made.

examples:
  omnimuse chat ./Qwen3-0.6B
  omnimuse chat OWNER/NAME
  omnimuse chat ./Qwen3-0.6B --system "Answer in one sentence." --temperature 0
  echo "What is a heron?" | omnimuse chat ./Qwen3-0.6B

/new forgets what was said, /exit ends (so does the end of the input). Ctrl-C ends the answer that is being made, and
what came of it stays; where none is being made, it ends the talk.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Protocol, TextIO

from omnimuse.cli.engine import add_engine_options, read_config
from omnimuse.core.errors import ConfigError
from omnimuse.core.output import Chunk, Event, Result
from omnimuse.core.params import GenerationParams

OPTIONS = ("max_tokens", "temperature", "top_k", "top_p", "repetition_penalty")


class Engine(Protocol):
    """What `chat` needs of `omnimuse.Omni`."""

    def stream(
        self, prompts: Sequence[Any], params: Any, *, listen: Callable[[Event], None], chunks: bool, seed: int | None
    ) -> Iterator[tuple[int, Result]]:
        """The place of a prompt and its result, as each is done."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `omnimuse chat`."""
    parser.add_argument("model", metavar="MODEL", help="a model that writes: a folder, or a hub id")
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before the talk begins")
    parser.add_argument(
        "--seed", type=int, metavar="N", help="the seed of every answer (default: a fresh one for each)"
    )
    parser.add_argument("--max-tokens", type=int, metavar="N", help="of an answer, at most")
    parser.add_argument("--temperature", type=float, metavar="X", help="0: always the likeliest word")
    parser.add_argument("--top-k", type=int, metavar="N", help="choose among so many words; 0: all")
    parser.add_argument("--top-p", type=float, metavar="X", help="choose among the words that make up so much")
    parser.add_argument("--repetition-penalty", type=float, metavar="X", help="above 1: say less often what was said")
    add_engine_options(parser)


def run(args: argparse.Namespace) -> int:
    """Talk until the person ends it."""
    from omnimuse.api import Omni
    from omnimuse.worker.find import find

    config = read_config(args)
    spec = find(config).spec
    if not spec.writes:
        raise ConfigError(f"{args.model} is {spec.family}, which does not write; use `omnimuse generate` with it")
    params = GenerationParams(**{name: getattr(args, name) for name in OPTIONS})
    with Omni(args.model, config=config) as engine:
        prompt = "> " if sys.stdin.isatty() and sys.stdout.isatty() else ""
        return talk(engine, params, sys.stdin, sys.stdout, system=args.system, seed=args.seed, prompt=prompt)


def talk(
    engine: Engine,
    params: GenerationParams,
    lines: TextIO,
    out: TextIO,
    *,
    system: str | None = None,
    seed: int | None = None,
    prompt: str = "",
) -> int:
    """Answer every line of `lines` on `out`, with all that was said before it; the exit code."""
    begun: list[Mapping[str, str]] = [{"role": "system", "content": system}] if system else []
    said = list(begun)
    while True:
        out.write(prompt)
        out.flush()
        line = lines.readline()
        if not line or line.strip() == "/exit":
            return 0
        if line.strip() == "/new":
            said = list(begun)
        elif line.strip():
            said.append({"role": "user", "content": line.strip()})
            said.append({"role": "assistant", "content": _answer(engine, said, params, seed, out)})


def _answer(
    engine: Engine, said: Sequence[Mapping[str, str]], params: GenerationParams, seed: int | None, out: TextIO
) -> str:
    """What the model says next; shown as it comes. Of an answer that was interrupted, what there was."""
    pieces: list[str] = []

    def show(event: Event) -> None:
        if isinstance(event, Chunk):
            pieces.append(event.data)
            out.write(event.data)
            out.flush()

    answers = engine.stream([said], params, listen=show, chunks=True, seed=seed)
    try:
        with closing(answers):  # type: ignore[type-var]
            for _, result in answers:
                if result.error is not None:
                    raise result.error
    except KeyboardInterrupt:
        out.write(" [stopped]")
    out.write("\n")
    return "".join(pieces)
