"""The yard-stick of the chat model: wishes that training never saw, its answers, and the pictures that come with them.

    python -m tools.train_shapes.chat_grade omnimuse/bundled/shapes-chat [--count 200] [--quantize int8]

An answer is right if it is a sentence with one mark whose prompt names every colour and shape that was asked for, and
how two things stand; whether the picture shows them, the demo model's judge says.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from tools.train_shapes.captions import TOLD_RELATION, place_words
from tools.train_shapes.data import Scene
from tools.train_shapes.judge import judge
from tools.train_shapes.talk import CLOSE, OPEN, Talk, Wanted, held_talks

if TYPE_CHECKING:
    from omnimuse import Omni

COUNT = 200
HELD_SHARE = 0.1
SENTENCE = re.compile(r"[A-Z][^.!?]*[.!]")

Answered = tuple[str, Image.Image | None]
"""An answer with its marks, and the picture that came with it."""


@dataclass(frozen=True)
class Report:
    """Shares, 0..1, of `count` wishes: answers that are right, those that are word for word as taught, pictures that
    show what was wanted.
    """

    count: int
    right: float
    exact: float
    shown: float
    failures: list[str]


def prompt_of(answer: str) -> str | None:
    """What stands between the marks of a well-formed answer: one sentence with one pair of them."""
    if answer.count(OPEN) != 1 or answer.count(CLOSE) != 1 or answer.index(OPEN) > answer.index(CLOSE):
        return None
    plain = answer.replace(OPEN, "").replace(CLOSE, "")
    return answer.partition(OPEN)[2].partition(CLOSE)[0] if SENTENCE.fullmatch(plain) else None


def names(prompt: str, scene: Scene) -> bool:
    """Whether `prompt` names the things of `scene` in their order, and how two stand."""
    nouns = [f"{thing.colour} {thing.shape}" for thing in scene.things]
    between = f".* {TOLD_RELATION[scene.relation]} .*" if len(nouns) > 1 else ""
    return re.search(rf"\b{between.join(nouns)}\b", prompt) is not None


def grade(answer: Callable[[Sequence[Talk]], list[Answered]], talks: Sequence[Talk]) -> Report:
    """The report on what `answer` makes of `talks`."""
    right, exact, shown, failures = 0, 0, 0, list[str]()
    for talk, (text, picture) in zip(talks, answer(talks), strict=True):
        wanted = talk.turns[-1].wanted
        assert wanted is not None
        prompt = prompt_of(text)
        good = prompt is not None and names(prompt, wanted.scene)
        right, exact = right + good, exact + (prompt == wanted.caption)
        drawn = picture is not None and shows(picture, wanted)
        shown += drawn
        if not (good and drawn):
            failures.append(f"{talk.turns[-1].said!r} -> {text!r}{'' if drawn else ' (not shown)'}")
    count = len(talks)
    return Report(count, right / count, exact / count, shown / count, failures)


def shows(picture: Image.Image, wanted: Wanted) -> bool:
    """What the judge of the demo model says of a picture."""
    place = place_words(wanted.things[0]) if wanted.placed else ""
    return judge(picture, wanted.scene, wanted.backed, place).right


def by_omnimuse(model: str, dtype: str = "float32", quantize: str = "") -> Callable[[Sequence[Talk]], list[Answered]]:
    """Answers of the engine, on a CPU."""

    def answer(talks: Sequence[Talk]) -> list[Answered]:
        from omnimuse import Omni

        with Omni(model, dtype=dtype, quantize=quantize, device="cpu") as omni:
            return answered(omni, talks)

    return answer


def answered(omni: Omni, talks: Sequence[Talk]) -> list[Answered]:
    """What `omni` answers; marks are put back where its tokens have them."""
    from omnimuse.models.talk_and_draw.spec import marks

    ctx = omni.engine.runner.pipeline.ctx
    words, (opens, closes) = ctx.components["words"], marks(ctx.configs)
    results = omni.generate([talk.messages for talk in talks], seed=1, progress=False)
    texts = [_marked(words, {opens: OPEN, closes: CLOSE}, result.written[0].tokens) for result in results]
    return [(text, next(iter(result.images), None)) for text, result in zip(texts, results, strict=True)]


def _marked(words: Any, marks: dict[int, str], tokens: Sequence[int]) -> str:
    found, run = "", list[int]()
    for token in tokens:
        if token not in marks:
            run.append(token)
            continue
        found, run = found + words.decode(run) + marks[token], []
    return found + words.decode(run)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="omnimuse/bundled/shapes-chat", help="the model's folder")
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--quantize", default="", help="packed as `omnimuse --quantize` says")
    parser.add_argument("--json", type=Path, help="write the report to this file")
    options = parser.parse_args()
    answer = by_omnimuse(options.model, options.dtype, options.quantize)
    report = grade(answer, list(held_talks(options.count, HELD_SHARE)))
    print("\n".join(report.failures))
    print(f"right answers   {report.right:6.1%} of {report.count}\n  word for word {report.exact:6.1%}")
    print(f"right pictures  {report.shown:6.1%}")
    if options.json:
        options.json.write_text(json.dumps(asdict(report), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
