"""As `test_all_at_once.py`, of what writes, speaks and draws what an answer asks for, on one rank, on two and in pools.

Together the cases have every pair of features that goes together and that no other test has.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from omnimuse.core.output import Chunk, Done, Event, Failed, Preview, Progress, Result
from omnimuse.core.params import make_params
from omnimuse.core.request import Ask
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.pipeline.generate import CHUNK
from tests.checkpoints import calling, qwen3, qwen3_omni, talk_and_draw
from tests.checkpoints.adapters import layers_telling, peft, write
from tests.checkpoints.packed import IN_ONE_FILE
from tests.compiling import Counter, compile_with
from tests.dist.test_all_at_once import Case, files_of, shown
from tests.invariants.conftest import drain, nap, submit, tick, with_params
from tests.invariants.test_pools import through
from tests.once import Once
from tests.ranks import play
from tests.skipping import counting
from tools.feature_list import PACKED_FILES, PACKS, SCHEMES, TELLING, TOLD, Feature, measured
from tools.features_page import asked, attempt

pytestmark = [pytest.mark.dist, pytest.mark.timeout(900)]

WRITES, ANSWERS, DRAWS = "Qwen3ForCausalLM", "Qwen3OmniMoeForConditionalGeneration", "TalkAndDrawPipeline"
BUILD: Mapping[str, Callable[[Path], Path]] = {
    WRITES: partial(calling.with_tools, build=qwen3.build),
    ANSWERS: partial(calling.with_tools, build=qwen3_omni.build),
    DRAWS: talk_and_draw.build,
}
OWN = frozenset(
    {
        *("text out", "sound out", "picture out", "pictures shown", "videos shown", "sounds heard", "tools"),
        *(*SCHEMES, "LoRA", "tiles"),
        *("scheduler", "TeaCache", "DBCache", "MagCache", "TaylorSeer", "step masks"),
        *PACKS,
        "bfloat16",
    }
)
"""What all else promises not to change."""
ALWAYS = ("text out", "streams", "reuse", "several", "company", "LoRA")
TEXT = (*ALWAYS, "tools")
SHOWN = ("pictures shown", "videos shown", "sounds heard")
ALOUD = (*(name for name in ALWAYS if name != "reuse"), "sound out", *SHOWN, "tools")
"""Of what is shown who answers aloud reads all again."""
DRAWN = (*ALWAYS, "picture out", "tiles")
WHOLE = tuple(name for name in DRAWN if name != "streams")
CHOSEN = ("previews", "scheduler")
"""What is asked of the picture of an answer."""
SKIPS = ("MagCache", "TaylorSeer", "step masks")
ALONE: tuple[tuple[str, tuple[str, ...]], ...] = (
    (WRITES, (*TEXT, "invariant", "int4", "layers", "sleep")),
    (WRITES, (*TEXT, "exact", "int8", "components", "sleep")),
    (WRITES, (*TEXT, "exact", "int8", "layers", "compile", "sleep")),
    (WRITES, (*TEXT, "int4", "components", "compile", "sleep")),
    (ANSWERS, (*ALOUD, "invariant", "int8", "components", "sleep")),
    (ANSWERS, (*ALOUD, "exact", "int4", "layers", "sleep")),
    (ANSWERS, (*ALOUD, "int8", "layers", "compile")),
    (ANSWERS, (*ALWAYS, *SHOWN, "tools")),
    (ANSWERS, (*ALWAYS, "sound out", "tools")),
    (DRAWS, (*DRAWN, "exact", "int8", "layers", "sleep")),
    (DRAWS, (*DRAWN, "invariant", "int4", "components", "sleep")),
    (DRAWS, (*DRAWN, "int8", "compile")),
)
SHARED: tuple[tuple[str, tuple[str, ...]], ...] = (
    (WRITES, (*TEXT, "tensor", "invariant", "int4", "layers", "sleep")),
    (WRITES, (*TEXT, "tensor", "exact", "int8", "components", "sleep")),
    (WRITES, (*TEXT, "pipe", "invariant", "int4", "layers", "sleep")),
    (WRITES, (*TEXT, "pipe", "exact", "int8", "components", "sleep")),
    (ANSWERS, (*ALOUD, "tensor")),
    (ANSWERS, (*ALOUD, "pipe")),
    (DRAWS, (*DRAWN, "tensor")),
    (DRAWS, (*DRAWN, "pipe")),
)
COMPILED: tuple[tuple[str, tuple[str, ...]], ...] = (
    (WRITES, (*TEXT, "tensor", "compile")),
    (WRITES, (*TEXT, "pipe", "compile")),
)
POOLED: tuple[tuple[str, tuple[str, ...]], ...] = tuple(
    (family, (*(name for name in names if name not in ("streams", "sleep")), "pools"))
    for family, names in (ALONE[0], ALONE[1], ALONE[3], ALONE[5], ALONE[9])
)
"""Of what is told while it is made, `test_in_two_pools_the_same_is_written_piece_by_piece` asks."""
SKIPPING: tuple[tuple[str, tuple[str, ...]], ...] = (
    (DRAWS, (*DRAWN, *CHOSEN, *SKIPS, "exact", "int8", "layers", "sleep")),
    (DRAWS, (*DRAWN, *CHOSEN, *SKIPS, "invariant", "int4", "components")),
    (DRAWS, (*DRAWN, *CHOSEN, "DBCache", "TaylorSeer", "step masks", "invariant", "int4", "components", "sleep")),
    (DRAWS, (*DRAWN, *CHOSEN, "DBCache", "exact", "int8", "layers")),
    (DRAWS, (*DRAWN, *CHOSEN, "DBCache", "compile")),
    (DRAWS, (*DRAWN, *CHOSEN, "TeaCache", "TaylorSeer", "step masks", "exact", "int4", "layers", "sleep")),
    (DRAWS, (*DRAWN, *CHOSEN, "TeaCache", "invariant", "int8", "components")),
    (DRAWS, (*DRAWN, *CHOSEN, "TeaCache", "compile")),
    (DRAWS, (*WHOLE, *CHOSEN, "TeaCache", "pools")),
    (DRAWS, (*WHOLE, *CHOSEN, *SKIPS, "pools")),
)
SKIPPING_SHARED: tuple[tuple[str, tuple[str, ...]], ...] = tuple(
    (DRAWS, (*DRAWN, *CHOSEN, *skips, axis))
    for axis in ("tensor", "pipe")
    for skips in (SKIPS, ("DBCache",), ("TeaCache",))
)
ROUNDING = ("int8-dynamic", "fp8", "fp8-dynamic")
STEADY: tuple[tuple[str, tuple[str, ...]], ...] = (
    (WRITES, (*TEXT, "exact", "layers", "sleep")),
    (WRITES, (*TEXT, "invariant", "components")),
    (WRITES, (*TEXT, "exact", "compile")),
    (WRITES, (*(name for name in TEXT if name != "streams"), "exact", "pools")),
    (ANSWERS, (*ALOUD, "exact")),
    *((DRAWS, (*DRAWN, *CHOSEN, *skips, "exact")) for skips in (SKIPS, ("DBCache",), ("TeaCache",))),
)
"""Where inputs are rounded, too, a last bit changes tokens: each has a forward of its own, or bits that stay."""
ROUNDED_ALONE = tuple((family, (*names, scheme)) for scheme in ROUNDING for family, names in STEADY)
ROUNDED_SHARED: tuple[tuple[str, tuple[str, ...]], ...] = tuple(
    (WRITES, (*TEXT, "pipe", "exact", scheme)) for scheme in ROUNDING
)
FOLDERS = tuple(files for files in PACKED_FILES if files not in IN_ONE_FILE)
FILES_ALONE: tuple[tuple[str, tuple[str, ...]], ...] = (
    *((WRITES, (*TEXT, "layers", files)) for files in FOLDERS),
    *((ANSWERS, (*ALOUD, "layers", files)) for files in FOLDERS),
    *((DRAWS, (*DRAWN, *CHOSEN, *SKIPS, "exact", "layers", "compile", "sleep", files)) for files in PACKED_FILES),
    *((DRAWS, (*DRAWN, *CHOSEN, "TeaCache", "invariant", "components", files)) for files in PACKED_FILES),
    *((DRAWS, (*WHOLE, *CHOSEN, "DBCache", "pools", files)) for files in PACKED_FILES),
)
FILES_SHARED: tuple[tuple[str, tuple[str, ...]], ...] = tuple(
    (DRAWS, (*DRAWN, axis, files)) for files in PACKED_FILES for axis in ("tensor", "pipe")
)
SEEN = ("block timings", "recording")
"""What nothing is told otherwise by; a pool is not recorded by itself."""
NARROW_ALONE: tuple[tuple[str, tuple[str, ...]], ...] = (
    *(
        (family, (*names, "bfloat16", "packed once", *(SEEN[:1] if "pools" in names else SEEN)))
        for family, names in STEADY
    ),
    *((WRITES, (*TEXT, "exact", scheme, "bfloat16", *SEEN)) for scheme in SCHEMES),
    *((DRAWS, (*DRAWN, "exact", files, "bfloat16", *SEEN)) for files in PACKED_FILES),
)
NARROW_SHARED: tuple[tuple[str, tuple[str, ...]], ...] = (
    (WRITES, (*TEXT, "pipe", "exact", "bfloat16", "packed once", *SEEN)),
    (WRITES, (*TEXT, "tensor", "packed once", *SEEN)),
)
LONG = "one two three " * 60
"""What is read in more than one step, so that there is a beginning to be read once."""


class Told(Case):
    """A case of what tells."""

    among = TELLING
    named: ClassVar[Mapping[str, Feature]] = {feature.name: feature for feature in TOLD}

    @property
    def plain(self) -> Told:
        """Where inputs are rounded, too, or all is, with the same forwards: a last bit tips their rounding."""
        rounded = any(name.endswith("-dynamic") or name == "bfloat16" for name in self.names)
        kept = OWN | {"exact", "invariant"} if rounded else OWN
        return replace(self, names=tuple(name for name in self.names if name in kept))

    @property
    def skips(self) -> bool:
        """Whether steps of pictures are skipped."""
        return any(feature.cache for feature in self.features)

    def ask(self) -> Ask:
        ask = asked(self.stand, self.features)
        chosen: dict[str, Any] = {"max_tokens": 12, "temperature": 0.8}
        if self.family == DRAWS:
            drawn = {**talk_and_draw.DEFAULTS, "num_inference_steps": 8} if self.skips else talk_and_draw.DEFAULTS
            chosen |= {"temperature": 0, "repetition_penalty": 1.5, "output_type": "pt", **drawn}
        if "LoRA" in self.names:
            chosen |= {"loras": [f"{self.adapter}:0.8"]}
        if self.family == ANSWERS:
            chosen |= {"modalities": ("text", "audio") if "sound out" in self.names else ("text",)}
        assert isinstance(ask.prompt, Mapping)
        before = {"role": "system", "content": LONG}
        if messages := ask.prompt.get("messages"):
            prompt = {**ask.prompt, "messages": [before, *messages]}
        else:
            prompt = {**ask.prompt, "prompt": f"{LONG}{ask.prompt['prompt']}"}
        return replace(ask, prompt=prompt, params=make_params(ask.params, chosen))

    def tell(self, engines: Sequence[Engine]) -> dict[str, Tensor]:
        """Three outputs: of one request in company, whose beginning is known, or of three that are told one after the
        other; in one engine, or in one for each pool.
        """
        ask, made = self.ask(), dict[str, Tensor]()
        if "several" not in self.names:
            for number in range(3):
                made |= parts([self.flight(engines, with_params(ask, seed=7 + number))[-1]], number)
            return made
        if "reuse" in self.names:
            self.flight(engines, ask)
        many = with_params(ask, seed=7, num_outputs_per_prompt=3)
        events = self.flight(engines, many, with_params(ask, seed=99, num_outputs_per_prompt=1))
        [result] = [event.result for event in events if isinstance(event, Done) and len(event.result.written) == 3]
        assert all((note.reused >= CHUNK) == ("reuse" in self.names) for note in result.written)
        if "streams" in self.names:
            self.check_pieces(result, events)
        return parts([event for event in events if isinstance(event, Done) and event.result is result])

    def flight(self, engines: Sequence[Engine], *asks: Ask) -> list[Event]:
        """All events of these, in flight together."""
        with ExitStack() as counted:
            skipped = [counted.enter_context(counting(engine)) for engine in engines]
            if len(engines) > 1:
                events = through(engines, [engines[0].make_request(ask) for ask in asks])
            else:
                submit(engines[0], *asks)
                with self.recorded(engines[0]):
                    events = self.events(engines[0]) if len(asks) > 1 else drain(engines[0])
        found = [event.result for event in events if isinstance(event, Done)]
        assert {bool(result.blocks) for result in found} <= {"block timings" in self.names}
        drawn = any(len(result.tensors.get("image", ())) for result in found)
        assert any(any(each.values()) for each in skipped) == (drawn and self.skips)
        assert any(isinstance(event, Preview) for event in events) == (drawn and "previews" in self.names)
        failed = [event.error for event in events if isinstance(event, Failed)]
        assert not failed, failed
        assert not any(engine.runner.forwards.retries for engine in engines)
        return events

    def events(self, engine: Engine) -> list[Event]:
        """All that comes of what is in flight; every output is being written when the weights leave."""
        events, writing = list[Event](), set[tuple[str, int]]()
        while len(writing) < 4:
            events += tick(engine)
            steps = [each for each in events if isinstance(each, Progress) and each.stage == "generate"]
            writing = {(each.request_id, each.output) for each in steps}
        if "sleep" in self.names:
            nap(engine)
        return events + drain(engine)

    def check_pieces(self, result: Result, events: Sequence[Event]) -> None:
        """That what was told while it was made is the whole."""
        pieces = [event for event in events if isinstance(event, Chunk) and event.request_id == result.request_id]
        for output, whole in enumerate(result.tensors["text"]):
            assert "".join(each.data for each in pieces if (each.output, each.medium) == (output, "text")) == whole
        for output, sound in enumerate(result.tensors.get("audio", ())):
            heard = [each.data for each in pieces if (each.output, each.medium) == (output, "audio")]
            assert torch.equal(torch.cat([torch.from_numpy(each) for each in heard], dim=1), sound)

    def check(self, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
        """That tokens are those that are told without, and sounds and pictures but for the last bits."""
        media = {"text out": "tokens", "sound out": "audio", "picture out": "image"}
        wanted = {f"{media[name]}.{number}" for name in self.names if name in media for number in range(3)}
        assert found.keys() == expected.keys() and wanted <= found.keys()
        bound = 1e-4 if "compile" in self.names else 1e-5
        for name, other in expected.items():
            if not other.is_floating_point():
                assert torch.equal(found[name], other), f"{name} of {self.names}"
            far = float((found[name].double() - other.double()).norm())
            assert far <= bound * float(other.double().norm()), f"{name} of {self.names}"


def parts(ends: Iterable[Event], first: int = 0) -> dict[str, Tensor]:
    """The tokens, sounds and pictures of all outputs, which are numbered from `first` on."""
    [end] = ends
    assert isinstance(end, Done)
    made = {"tokens": [torch.tensor(note.tokens) for note in end.result.written]}
    made |= {medium: list(end.result.tensors.get(medium, ())) for medium in ("audio", "image")}
    return {f"{name}.{first + n}": each for name, found in made.items() for n, each in enumerate(found)}


def cases(asked: Iterable[tuple[str, tuple[str, ...]]], once: Once, home: Path) -> list[Told]:
    """All of these, with adapters to wear; those that draw ask for a picture."""
    made = []
    for number, (family, names) in enumerate(asked):
        adapter = home / f"{family}.safetensors"
        if not adapter.exists():
            write(adapter, layers_telling(built(once, family)), peft("base_model.model."))
        case = Told(family, names, built(once, family, files_of(names)), adapter, home / f"{number}.safetensors")
        made.append(marked(case, home / f"{number}") if family == DRAWS else case)
    return made


def built(once: Once, family: str, files: str = "") -> Path:
    """Its checkpoint, by how its files are packed."""
    folder = once.folder(f"told at once {family}", lambda made: measured(BUILD[family](made)))
    if not files:
        return folder
    return once.folder(f"told at once {family} {files}", lambda made: (PACKS[files](folder, made), measured(made)))


def marked(case: Told, home: Path) -> Told:
    """The same of a copy whose marks of a picture are tokens that it writes."""
    engine = start(case.plain.config())
    written = case.plain.tell([engine])["tokens.0"].tolist()
    engine.close()
    shutil.copytree(case.folder, home)
    talk_and_draw.mark(home, written)
    return replace(case, folder=home)


def on_one(case: Told) -> dict[str, Tensor]:
    """What is told in this process, in an engine or in one for each pool; compiled by a compiler that makes no code."""
    engines = case.started()
    if "compile" in case.names:
        torch._dynamo.reset()
        for engine in engines:
            compile_with(engine, Counter())
    found = case.tell(engines)
    for engine in engines:
        engine.close()
    return found


def on_rank(rank: int, several: list[Told], meeting: Path) -> None:
    """Rank 0 drives one engine after the other, the other follows each until it closes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    for case in several:
        try:
            engine = start(case.config())
        except SystemExit:
            continue
        save_file({name: each.contiguous() for name, each in case.tell([engine]).items()}, case.results)
        engine.close()


@pytest.mark.crossed
@pytest.mark.parametrize(
    "asked",
    [
        *(*ALONE, *SHARED, *COMPILED, *POOLED, *SKIPPING, *SKIPPING_SHARED),
        *(*ROUNDED_ALONE, *ROUNDED_SHARED, *FILES_ALONE, *FILES_SHARED, *NARROW_ALONE, *NARROW_SHARED),
    ],
    ids=lambda asked: " ".join(asked[1]),
)
def test_what_is_tried_is_let_in(asked: tuple[str, tuple[str, ...]], once: Once, tmp_path: Path) -> None:
    family, names = asked
    case = Told(family, names, built(once, family, files_of(names)), tmp_path, tmp_path)
    assert attempt(case.stand, case.features) is None


@pytest.mark.costly("told at once")
@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")  # the compiler's own
@pytest.mark.parametrize(
    "asked",
    [
        *(pytest.param(asked, id=str(number), marks=shown([asked])) for number, asked in enumerate((*ALONE, *POOLED))),
        *(
            pytest.param(asked, id=f"{what}-{number}", marks=[pytest.mark.costly(f"{what} told"), *shown([asked])])
            for what, several in (("files", FILES_ALONE), ("rounded", ROUNDED_ALONE))
            for number, asked in enumerate(several)
        ),
        *(
            pytest.param(asked, id=f"skips-{number}", marks=[pytest.mark.costly("skips told"), *shown([asked])])
            for number, asked in enumerate(SKIPPING)
        ),
        *(
            pytest.param(asked, id=f"narrow-{number}", marks=[pytest.mark.costly, *shown([asked])])
            for number, asked in enumerate(NARROW_ALONE)
        ),
    ],
)
def test_what_changes_nothing_changes_nothing_of_what_is_told(
    asked: tuple[str, tuple[str, ...]], once: Once, tmp_path: Path
) -> None:
    [case] = cases([asked], once, tmp_path)
    case.check(on_one(case), on_one(case.plain))


@pytest.mark.costly("told at once")
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(SHARED, id="all", marks=shown(SHARED)),
        pytest.param(FILES_SHARED, id="files", marks=[pytest.mark.costly("files told"), *shown(FILES_SHARED)]),
        pytest.param(SKIPPING_SHARED, id="skips", marks=[pytest.mark.costly("skips told"), *shown(SKIPPING_SHARED)]),
        pytest.param(ROUNDED_SHARED, id="rounded", marks=[pytest.mark.costly("rounded told"), *shown(ROUNDED_SHARED)]),
        *(
            pytest.param([asked], id=f"narrow-{number}", marks=[pytest.mark.costly, *shown([asked])])
            for number, asked in enumerate(NARROW_SHARED)
        ),
        pytest.param(COMPILED, id="compiled", marks=[pytest.mark.costly("compiled at once"), *shown(COMPILED)]),
    ],
)
def test_neither_do_two_ranks(asked: Sequence[tuple[str, tuple[str, ...]]], once: Once, tmp_path: Path) -> None:
    several = cases(asked, once, tmp_path)
    play(on_rank, several, tmp_path / "meeting", ranks=2)
    for case in several:
        case.check(load_file(case.results), on_one(case.plain))
