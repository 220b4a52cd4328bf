"""One tiny checkpoint per registered pipeline, built once for the session, and engines over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import pytest
import torch
from torch import Tensor, nn

from omnimuse.ar.kv import KV
from omnimuse.attention.layer import Attention
from omnimuse.core.config import AttentionConfig, Config, ModelConfig, ScheduleConfig
from omnimuse.core.output import Done, Event, Failed, Result
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask, Request
from omnimuse.deploy.pools import Pools
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import finished, present, start
from omnimuse.layers.network import Network
from omnimuse.worker.place import most_allocated
from tests.checkpoints.families import FAMILIES
from tests.checkpoints.wishes import Answerer, Family, Speaker, Wish, Writer
from tests.once import Once


@dataclass(frozen=True)
class Subject:
    """A family and the folder of its tiny checkpoint."""

    family: Family
    folder: Path

    def ask(self, index: int, **choices: object) -> Ask:
        """Wish number `index` as an ask for latents; `choices` change its parameters (`previews`, the ask)."""
        wish: Wish = self.family.wishes[index]
        previews = int(str(choices.pop("previews", 0)))
        params = replace(wish.params, **{"output_type": "latent", **choices})  # type: ignore[arg-type]
        return Ask(wish.asked, params, previews=previews)

    def asks(self, **choices: object) -> list[Ask]:
        """Every wish as an ask."""
        return [self.ask(index, **choices) for index in range(len(self.family.wishes))]

    def config(self, **parts: object) -> Config:
        """Of an engine over its checkpoint."""
        return config(self.folder, **parts)


def config(folder: Path, **parts: object) -> Config:
    """A float32 configuration that refuses undeclared slots; `parts` replace whole topics."""
    chosen = {"schedule": ScheduleConfig(strict_slots=True, company="always"), **parts}
    return Config(ModelConfig(str(folder), dtype="float32", device="cpu"), **chosen)  # type: ignore[arg-type]


def drain(engine: Engine, ticks: int = 500) -> list[Event]:
    """Tick until there is nothing to do."""
    events: list[Event] = []
    for _ in range(ticks):
        if engine.idle:
            return events
        events += engine.tick()
    raise AssertionError("the engine did not finish")


def taking(engine: Engine, request: Request) -> tuple[Result, int]:
    """What is drawn, and the most that torch allocates for it where the engine computes."""
    made: list[Result] = []
    took = most_allocated(engine.runner.pipeline.ctx.device, lambda: made.extend(finished(engine, request)))
    assert took is not None
    return made[0], max(took.values())


def tick(engine: Engine) -> list[Event]:
    """One tick for a test that waits for something: where everything has ended before, it fails and does not hang."""
    assert not engine.idle, "everything has ended before"
    return engine.tick()


def submit(engine: Engine, *asks: Ask) -> list[str]:
    return [engine.submit(engine.make_request(ask)) for ask in asks]


def nap(engine: Engine) -> None:
    """Between two ticks, all weights leave and come back."""
    engine.sleep()
    assert engine.asleep and not engine.tick(), "requests wait meanwhile"
    engine.wake_up()


def spoil(engine: Engine, request_id: str) -> None:
    """From when a request remembers something, what it remembers is no numbers."""
    found: list[KV] = []
    while not found:
        tick(engine)
        states = [state for state in engine.runner.states.values() if state.id.startswith(request_id)]
        found = [state[name] for state in states for name in state.names if isinstance(state[name], KV)]
    with torch.inference_mode():
        for memory in found:
            memory.data.fill_(torch.nan)


def told(pools: Pools, *wanted: Ask) -> list[list[Event]]:
    """The events of all asks, in flight together."""
    found: list[list[Event]] = [[] for _ in wanted]
    queue: SimpleQueue[tuple[int, Event]] = SimpleQueue()
    for place, ask in enumerate(wanted):
        pools.submit(pools.make_request(ask), partial(lambda place, event: queue.put((place, event)), place))
    left = len(wanted)
    while left:
        place, event = queue.get(timeout=120)
        found[place].append(event)
        left -= isinstance(event, Done | Failed)
    return found


def outputs(events: list[Event], request_id: str) -> Tensor:
    """The finished tensor [n, ...] of a request; its failure is raised."""
    for event in events:
        if isinstance(event, Failed) and event.request_id == request_id:
            raise event.error
        if isinstance(event, Done) and event.request_id == request_id:
            return event.result.output
    raise AssertionError(f"request {request_id} neither finished nor failed")


def results(engine: Engine, events: list[Event], ids: list[str]) -> list[Result]:
    """What people get of finished requests; the failure of one is raised."""
    for event in events:
        if isinstance(event, Failed) and event.request_id in ids:
            raise event.error
    done = {event.request_id: event.result for event in events if isinstance(event, Done)}
    return [present(done[id_], engine.door.limits) for id_ in ids]


def blocks_of(engine: Engine) -> Iterator[list[str]]:
    """What blocks are called, for each stack of all its networks."""
    components = engine.runner.pipeline.ctx.components
    for name in components:
        network = components.wherever(name)
        for stack in network.stacks().values() if isinstance(network, Network) else ():
            paths = {id(part): path for path, part in network.named_modules()}
            yield [f"{name}.{paths[id(block)]}" for block in stack.blocks()]


def modules(engine: Engine) -> list[nn.Module]:
    """Its components that are modules, wherever their weights are."""
    components = engine.runner.pipeline.ctx.components
    return [each for name in components if isinstance(each := components.wherever(name), nn.Module)]


def check_attention(engine: Engine, asked: AttentionConfig) -> None:
    """That every site of attention, whichever component has it, is computed by what was asked for it."""
    sites = [part for each in modules(engine) for part in each.modules() if isinstance(part, Attention)]
    by_category = [asked.per_role.get(site.category or "", asked.default) for site in sites]
    chosen = [asked.per_role.get(site.role, name) for site, name in zip(sites, by_category, strict=True)]
    assert sites and [site.backend.name for site in sites] == chosen, "a site attends in another way than was chosen"


def runs_of_blocks(engine: Engine, result: Result) -> int:
    """How often stacks of its networks ran, all together; every block of one as often as the others, each time with
    bytes that were held.
    """
    ran = 0
    for names in blocks_of(engine):
        runs = {len(result.blocks.get(name, ())) for name in names}
        assert len(runs) == 1, "every block of a stack runs as often as the others"
        ran += runs.pop()
    assert {name: len(held) for name, held in result.blocks_held.items()} == {
        name: len(runs) for name, runs in result.blocks.items()
    }
    assert all(size > 0 for held in result.blocks_held.values() for size in held)
    return ran


def counts(result: Result) -> dict[str, dict[str, int]]:
    """Of how many steps and runs of blocks a result tells what they took; of each kind there are some."""
    kinds = {"steps": result.steps, "held": result.held, "blocks": result.blocks, "blocks_held": result.blocks_held}
    assert all(kinds.values())
    return {kind: {name: len(each) for name, each in found.items()} for kind, found in kinds.items()}


def run(engine: Engine, *asks: Ask) -> list[Tensor]:
    """All asks in flight together; one tensor [n, ...] each."""
    ids = submit(engine, *asks)
    events = drain(engine)
    return [outputs(events, id_) for id_ in ids]


def with_params(ask: Ask, **choices: object) -> Ask:
    assert isinstance(ask.params, DiffusionParams)
    return replace(ask, params=replace(ask.params, **choices))  # type: ignore[arg-type]


@pytest.fixture(scope="session", params=FAMILIES, ids=lambda family: family.name)
def subject(request: pytest.FixtureRequest, tiny: Callable[[str], Path]) -> Subject:
    family: Family = request.param
    return Subject(family, tiny(family.name))


def of(families: Sequence[Family]) -> pytest.MarkDecorator:
    """A mark of tests that need not run with all of the families."""
    return pytest.mark.parametrize("subject", families, ids=[family.name for family in families], indirect=True)


@pytest.fixture(scope="session")
def shared(subject: Subject) -> Iterator[Engine]:
    """One plain engine per family."""
    engine = start(subject.config())
    yield engine
    assert not engine.runner.forwards.retries, "rows that cannot share a forward are a fault of the family"
    engine.close()


@pytest.fixture
def engine_with(subject: Subject) -> Iterator[Callable[..., Engine]]:
    """Makes engines whose configuration differs in the topics given; all are closed."""
    made: list[Engine] = []

    def make(**parts: object) -> Engine:
        made.append(start(subject.config(**parts)))
        return made[-1]

    yield make
    for engine in made:
        assert not engine.runner.forwards.retries, "rows that cannot share a forward are a fault of the family"
        engine.close()


@pytest.fixture(scope="module")
def folder(teller: Writer | Speaker | Answerer, once: Once) -> Path:
    """The tiny checkpoint of what writes, speaks or does both: the module has a fixture `teller`, which is that."""
    return once.folder(teller.name, teller.build)


@pytest.fixture
def measuring(folder: Path) -> Iterator[Engine]:
    """One that measures what company costs, as those of users do."""
    made = start(config(folder, schedule=ScheduleConfig(strict_slots=True)))
    yield made
    made.close()


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    """One plain engine over it."""
    made = start(config(folder))
    yield made
    assert not made.runner.forwards.retries, "rows that cannot share a forward are a fault of the family"
    made.close()
