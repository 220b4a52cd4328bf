"""What guests are let in with draws what they draw without it, as near as families of ours do; all else is refused by
its name. A feature of `docs/features.md` of a guest there is a case here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from omnimuse.core.config import Config, HostConfig, ScheduleConfig
from omnimuse.core.errors import ModelError
from omnimuse.core.output import Done, Preview, Result
from omnimuse.core.request import Ask
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.media.picture import picture_of
from tests.checkpoints.adapters import write
from tests.checkpoints.packed import FILES, as_floats
from tests.checkpoints.wishes import photo
from tests.compat.checkpoints import worn_by
from tests.compat.test_adapters import compile_with
from tests.compiling import Counter
from tests.dist.test_all_at_once import LONG
from tests.distance import distance
from tests.invariants.conftest import check_attention, drain, modules, nap, outputs, run, submit, tick, with_params
from tests.invariants.test_quantized import FAR
from tests.ranks import play
from tests.unit.tools.test_features_page import told as told_on_page
from tools.feature_guests import ASKED_OF_GUESTS, EVERY, VISITING, Visit
from tools.feature_list import ATTENTION, PACKED_FILES, SCHEMES, Feature, measured
from tools.features_page import Cell, asked, attempt, ranks, topics

pytestmark = [
    pytest.mark.crossed,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Should have .*t[01]:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch"),  # the compiler's own
]

NEAR = 1e-5
WORDS: Mapping[str, str] = {
    "schedule": "tier",
    **dict.fromkeys(("picture in", "mask", "pad", "text"), "images picture"),
    "video in": "videos",
    "sound in": "sounds",
    "pools": "deploy",
    "packed once": "quantize",
    **dict.fromkeys(PACKED_FILES, "packed package"),
    "cache": "Cache TeaCache taylorseer",
    "compile": "enforce_eager",
    "offload": "enable_layerwise_offload",
    "decode": "vae_use_tiling",
    **dict.fromkeys(("ulysses", "ring"), "ulysses_degree parallel"),
    "shard": "use_hsdp parallel",
    **dict.fromkeys(("tensor", "pipe", "cfg"), "parallel"),
    "tiles on ranks": "vae_patch_parallel_size parallel tensor=2",
}
"""What a refusal calls features, where it does not call them by what they are switched on with."""


@dataclass(frozen=True)
class Visitor:
    """A guest, and what its requests come to alone where nothing is switched on, by how many numbers of weights."""

    visit: Visit
    plain: list[Tensor]
    held: int = 0

    def asks(self, feature: Feature | None = None) -> list[Ask]:
        """What it is asked: its first request with the feature, and the last."""
        first, last = (Ask(wish.asked, wish.params) for wish in (self.visit.family.wishes[i] for i in (0, -1)))
        first = first if feature is None else asked(self.visit, [feature])
        return [with_params(ask, output_type="pt", **LASTING) for ask in (first, last)]

    def config(self, chosen: dict[str, Any], **more: Any) -> Config:
        """Of an engine that is started with this chosen, in company whenever there is some."""
        schedule = replace(chosen.get("schedule", ScheduleConfig()), strict_slots=True, company="always")
        return replace(self.visit.config({**chosen, "schedule": schedule, **more}), host=HostConfig(threads=1))

    def drawn(self) -> list[Tensor]:
        """What its requests come to, each alone."""
        with self.engine() as made:
            return [run(made, ask)[0] for ask in self.asks()]

    def for_two(self) -> Visitor:
        """The same, asked what two ranks can share."""
        if not (even := self.visit.family.even):
            return self
        asked = replace(self, visit=replace(self.visit, family=replace(self.visit.family, wishes=even)))
        return replace(asked, plain=asked.drawn())

    def larger(self) -> list[Ask]:
        """What it is asked, of pictures with more than one tile."""
        return [with_params(ask, **(LARGE if ask.params.height else {})) for ask in self.asks()]

    def in_tiles(self) -> list[Tensor]:
        """What these come to, as its own autoencoders do when they are told to decode in tiles, which is not the same
        as whole.
        """
        with self.engine() as made:
            whole = run(made, *self.larger())
            for part in (part for each in modules(made) for part in each.modules()):
                if hasattr(part, "enable_tiling"):
                    part.enable_tiling()
            found = run(made, *self.larger())
        if self.visit.door.spec.medium == "image":  # videos and sounds have larger tiles
            assert not any(torch.equal(*pair) for pair in zip(found, whole, strict=True))
        return found

    @contextmanager
    def engine(self, *features: Feature) -> Iterator[Engine]:
        """One that is started with these."""
        with closing(start(self.config(topics(features)))) as made:
            yield made
            assert not made.runner.forwards.retries


LASTING = {"num_inference_steps": LONG["num_inference_steps"]}
"""Parameters of a request that has enough steps for a mask."""


LARGE = {"height": 96, "width": 128}
TOGETHER = ("DocumentedStepPipeline", "TwoListsStepPipeline", "ComposedSmallPipeline")
"""Guests that have several features at once."""
RANKED = [each for each in ASKED_OF_GUESTS if each.axes]
"""What two ranks are for."""


@pytest.fixture(scope="module", params=VISITING, ids=lambda guest: guest.name)
def visitor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Visitor:
    guest = request.param
    visit = Visit(guest, measured(guest.made(tmp_path_factory.mktemp("guests") / guest.name)))
    bare = Visitor(visit, [])
    with bare.engine() as made:
        return replace(bare, plain=[run(made, ask)[0] for ask in bare.asks()], held=weights(made))


@pytest.mark.parametrize(
    "feature",
    [pytest.param(each, id=each.name, marks=pytest.mark.shows(each.name)) for each in ASKED_OF_GUESTS if not each.axes],
)
def test_a_guest_has_a_feature_or_is_refused_it_by_its_name(visitor: Visitor, feature: Feature, tmp_path: Path) -> None:
    refused = attempt(visitor.visit, [feature])
    check_page(visitor, feature, refused)
    if refused is None:
        TRIED[feature.name](visitor, feature, tmp_path)
    elif refused.word == "not tried":
        lacks(visitor, feature, tmp_path)
    else:
        assert refused.word == "impossible" or any(word in refused.why for word in words(feature)), refused.why


@pytest.mark.dist
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "features",
    [pytest.param(RANKED, id="ranks", marks=[pytest.mark.shows(each.name) for each in RANKED])],
)
def test_two_ranks_draw_what_one_draws_or_are_refused_by_their_name(
    visitor: Visitor, features: list[Feature], tmp_path: Path
) -> None:
    able = []
    for feature in features:
        refused = attempt(visitor.visit, [feature])
        check_page(visitor, feature, refused)
        if refused is None:
            able.append(feature)
        else:
            assert any(word in refused.why for word in words(feature)), refused.why
    if not able:
        return
    visitor = visitor.for_two()
    chosen = [visitor.config(topics([each]), parallel=ranks([each])) for each in able]
    kept = [tmp_path / f"{each.name}.safetensors" for each in able]
    asks = [visitor.larger() if "vae_tiles" in each.axes else visitor.asks() for each in able]
    play(on_rank, list(zip(chosen, asks, kept, strict=True)), tmp_path / "meeting", ranks=2)
    for feature, file in zip(able, kept, strict=True):
        found = load_file(file)
        held = found.pop("held")
        expected = replace(visitor, plain=visitor.in_tiles()) if "vae_tiles" in feature.axes else visitor
        same(expected, [found[str(number)] for number in range(len(found))], NEAR)
        assert {"tensor", "shard"}.isdisjoint(feature.axes) or held.item() < visitor.held, "a part of the weights"


@pytest.mark.dist
@pytest.mark.timeout(600)
@pytest.mark.parametrize("visitor", [EVERY[name] for name in TOGETHER], ids=TOGETHER, indirect=True)
def test_an_adapter_packed_weights_a_step_cache_and_blocks_elsewhere_or_two_ranks_go_together(
    visitor: Visitor, tmp_path: Path
) -> None:
    named = {each.name: each for each in ASKED_OF_GUESTS}
    lora, int8, cached, layers, cfg = (named[name] for name in ("LoRA", "int8", "DBCache", "layers", "cfg"))
    for besides in (layers, cfg):
        assert attempt(visitor.visit, [lora, int8, cached, besides]) is None
    adapter = write(tmp_path / "worn.safetensors", worn_by(visitor.visit.folder))
    bare, last = visitor.asks(cached)
    asks = [with_params(bare, loras=[f"{adapter}:0.8"]), last]

    def drawn(*features: Feature, asks: Sequence[Ask] = asks) -> list[Tensor]:
        with visitor.engine(*features) as made:
            return run(made, *asks)

    expected = replace(visitor, plain=[drawn(int8, cached, asks=[ask])[0] for ask in asks])
    same(expected, drawn(int8, cached, layers), NEAR)
    file = tmp_path / "ranks.safetensors"
    play(
        on_rank, [(visitor.config(topics([int8, cached]), parallel=ranks([cfg])), asks, file)], tmp_path / "m", ranks=2
    )
    found = load_file(file)
    same(expected, [found[str(number)] for number in range(len(asks))], NEAR)
    for lacking in (drawn(cached), drawn(int8)):
        assert all(distance(*pair) > NEAR for pair in zip(lacking, expected.plain, strict=True))
    worn, beside = zip(drawn(int8, cached, asks=[bare, last]), expected.plain, strict=True)
    assert distance(*worn) > NEAR >= distance(*beside)


@cache
def promised() -> Mapping[tuple[str, str], str]:
    """What the page says of guests, in a word for each and each feature."""
    head, *rows = told_on_page()[3][0]
    return {
        (row[0].strip("`"), name): cell.rpartition(" ")[0]
        for row in rows
        for name, cell in zip(head[1:], row[1:], strict=True)
    }


def check_page(visitor: Visitor, feature: Feature, refused: Cell | None) -> None:
    """It has the feature where the page says so, and nowhere else."""
    said = promised()[visitor.visit.family.name, feature.name]
    assert said == ("works" if refused is None else refused.word), "a fault, or the page is old: `make features`"


def on_rank(rank: int, several: list[tuple[Config, list[Ask], Path]], meeting: Path) -> None:
    """Rank 0 drives one engine after the other, the other follows each until it closes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    for config, asks, file in several:
        with suppress(SystemExit), closing(start(config)) as made:
            found = {str(number): each.contiguous() for number, each in enumerate(run(made, *asks))}
            save_file({**found, "held": torch.tensor(weights(made))}, file)


def weights(made: Engine) -> int:
    """How many numbers its networks hold here."""
    return sum(weight.numel() for part in modules(made) for weight in part.parameters())


def words(feature: Feature) -> list[str]:
    """What a refusal may call it: what it is switched on with, or one of `WORDS`."""
    switched = [feature.name, *feature.topics, *feature.axes, *feature.params, *(["cache"] if feature.cache else [])]
    return [word for each in switched for word in (each, *WORDS.get(each, "").split())]


# -- how each is tried -------------------------------------------------------------------------------------------------


def same(visitor: Visitor, found: list[Tensor], bound: float = 0.0) -> None:
    """These are what it draws without."""
    for made, expected in zip(found, visitor.plain, strict=True):
        assert distance(made, expected) <= bound


def reads(visitor: Visitor, feature: Feature, folder: Path) -> None:
    """What is given is looked at: with other words, or another picture, another output comes."""
    ask, _ = visitor.asks(feature)
    other = {**ask.prompt, **({"prompt": "three squares"} if ask.prompt["prompt"] else {})}
    if feature.name != "text":
        other["images"] = [picture_of(photo(44, 36))]
    with visitor.engine() as plain:
        [first], [second], [again] = (run(plain, each) for each in (ask, replace(ask, prompt=other), ask))
    assert torch.equal(first, again) and not torch.equal(first, second)


def several(visitor: Visitor, feature: Feature, folder: Path) -> None:
    """Each output is that of a request with the next seed."""
    ask, _ = visitor.asks(feature)
    with visitor.engine() as plain:
        [together] = run(plain, ask)
        seeds = [(ask.params.seed or 0) + number for number in range(len(together))]
        alone = [run(plain, with_params(ask, num_outputs_per_prompt=1, seed=seed))[0] for seed in seeds]
    assert len(together) == 3
    for found, expected in zip(together, alone, strict=True):
        assert distance(found[None], expected) <= NEAR


def in_company(visitor: Visitor, feature: Feature, folder: Path) -> None:
    """Each is what it is alone; to the bit where that is what was asked for."""
    with visitor.engine(feature) as made:
        alone = [run(made, ask)[0] for ask in visitor.asks()]
        same(replace(visitor, plain=alone), run(made, *visitor.asks()), 0.0 if feature.topics else NEAR)
    same(visitor, alone, NEAR)


def told(visitor: Visitor, ask: Ask, made: Engine) -> tuple[Result, list[Preview]]:
    """What is told of the first request, which is what it is without."""
    [id_] = submit(made, ask)
    events = drain(made)
    same(replace(visitor, plain=visitor.plain[:1]), [outputs(events, id_)])
    [result] = [event.result for event in events if isinstance(event, Done)]
    return result, [event for event in events if isinstance(event, Preview)]


def shows_previews(visitor: Visitor, feature: Feature, folder: Path) -> None:
    with visitor.engine() as plain:
        _, previews = told(visitor, visitor.asks(feature)[0], plain)
    assert previews


def times_blocks(visitor: Visitor, feature: Feature, folder: Path) -> None:
    with visitor.engine() as plain:
        result, _ = told(visitor, visitor.asks(feature)[0], plain)
    assert result.blocks and all(result.blocks.values())


def records(visitor: Visitor, feature: Feature, folder: Path) -> None:
    """The blocks that a request is told of have their names in the trace, whoever is told of none."""
    with visitor.engine() as plain:
        timed, _ = told(visitor, replace(visitor.asks()[0], blocks=True), plain)
        plain.recordings.begin()
        told(visitor, visitor.asks()[0], plain)
        [trace] = plain.recordings.end(folder / "trace.json.gz")
    named = {str(event.get("name")) for event in json.loads(trace.read_bytes())["traceEvents"]}
    assert timed.blocks and named.issuperset(timed.blocks)


def sleeps(visitor: Visitor, feature: Feature, folder: Path) -> None:
    """While it draws, where it does so for longer than a tick, and before it draws again."""
    with visitor.engine() as plain:
        expected = replace(visitor, plain=run(plain, *visitor.asks()))
        ids = submit(plain, *visitor.asks())
        events = [event for _ in range(3) if not plain.idle for event in tick(plain)]
        if not plain.idle:
            nap(plain)
        events += drain(plain)
        same(expected, [outputs(events, id_) for id_ in ids])
        nap(plain)
        same(expected, run(plain, *visitor.asks()))


def rounds(visitor: Visitor, feature: Feature, folder: Path, bound: float) -> None:
    """It is another output, but near."""
    with visitor.engine(feature) as made:
        for found, expected in zip(run(made, *visitor.asks()), visitor.plain, strict=True):
            assert 0 < distance(found, expected) < bound


def waits(visitor: Visitor, feature: Feature, folder: Path) -> None:
    """Weights are away when nobody computes with them."""
    with visitor.engine(feature) as made:
        same(visitor, run(made, *visitor.asks()), NEAR)
        assert any(weight.is_meta for part in modules(made) for weight in part.parameters())


def attends(visitor: Visitor, feature: Feature, folder: Path) -> None:
    with visitor.engine(feature) as made:
        same(visitor, run(made, *visitor.asks()), NEAR)
        check_attention(made, feature.topics["attention"])


def skips(visitor: Visitor, feature: Feature, folder: Path) -> None:
    """Steps are left out, each request's own."""
    with visitor.engine(feature) as made:
        alone = [run(made, ask)[0] for ask in visitor.asks(feature)]
        for found, expected in zip(run(made, *visitor.asks(feature)), alone, strict=True):
            assert distance(found, expected) <= NEAR
    for found, exact in zip(alone, visitor.plain, strict=True):
        assert distance(found, exact) > NEAR


def reads_packed(visitor: Visitor, feature: Feature, folder: Path) -> None:
    """What packed files stand for is drawn, which is another output."""
    packed, floats = folder / "packed", folder / "floats"
    found = FILES[feature.name](visitor.visit.folder, packed)
    as_floats(visitor.visit.folder, found, floats)
    expected, made = (replace(visitor, visit=replace(visitor.visit, folder=each)).drawn() for each in (floats, packed))
    same(replace(visitor, plain=expected), made, NEAR)
    assert all(distance(*pair) > NEAR for pair in zip(made, visitor.plain, strict=True))


def lacks(visitor: Visitor, feature: Feature, folder: Path) -> None:
    """Without the package by which its library would read them, the start says what to install."""
    if find_spec(feature.name) is not None:
        pytest.skip(f"{feature.name} is there, and what it draws is compared with nothing")
    FILES[feature.name](visitor.visit.folder, folder / "packed")
    packed = replace(visitor, visit=replace(visitor.visit, folder=folder / "packed"))
    with pytest.raises(ModelError, match=rf'pip install "omnimuse\[{feature.name}\]"'):
        start(packed.config({}))


def cuts_tiles(visitor: Visitor, feature: Feature, folder: Path) -> None:
    expected = replace(visitor, plain=visitor.in_tiles())
    with visitor.engine(feature) as made:
        same(expected, run(made, *visitor.larger()))
        parts: list[Any] = [part for each in modules(made) for part in each.modules() if hasattr(part, "use_tiling")]
        assert any(part.use_tiling for part in parts)


def compiles(visitor: Visitor, feature: Feature, folder: Path) -> None:
    torch._dynamo.reset()
    with visitor.engine(feature) as made:
        compile_with(made, counter := Counter())
        same(visitor, run(made, *visitor.asks()), 1e-4)
    assert counter.graphs


def wears(visitor: Visitor, feature: Feature, folder: Path) -> None:
    """Who wears an adapter beside who does not is drawn as alone."""
    adapter = write(folder / "worn.safetensors", worn_by(visitor.visit.folder))
    first, last = visitor.asks()
    worn = with_params(first, loras=[f"{adapter}:0.8"])
    with visitor.engine() as plain:
        [alone] = run(plain, worn)
        beside, bare = run(plain, worn, last)
        again = run(plain, first, last)
    assert distance(beside, alone) <= NEAR < distance(alone, visitor.plain[0])
    same(visitor, again, NEAR)
    same(replace(visitor, plain=visitor.plain[1:]), [bare], NEAR)


Try = Callable[[Visitor, Feature, Path], None]
TRIED: Mapping[str, Try] = {
    **dict.fromkeys(("text", "picture in"), reads),
    "several": several,
    "previews": shows_previews,
    **dict.fromkeys(("company", "invariant", "exact"), in_company),
    "bfloat16": partial(rounds, bound=FAR["fp8"]),  # which has fewer bits
    **dict.fromkeys(("TeaCache", "DBCache", "TaylorSeer", "step masks"), skips),
    **{scheme: partial(rounds, bound=FAR[scheme]) for scheme in SCHEMES},
    "LoRA": wears,
    **dict.fromkeys(("components", "layers"), waits),
    "sleep": sleeps,
    "compile": compiles,
    "tiles": cuts_tiles,
    **dict.fromkeys(PACKED_FILES, reads_packed),
    "block timings": times_blocks,
    "recording": records,
    **{each.name: attends for each in ATTENTION},
}
"""By the name of a feature, what is done with it."""
