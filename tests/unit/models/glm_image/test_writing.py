"""GLM-Image's language model writes what is in a picture before it is drawn: token by token as the reference does."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers.models.glm_image.image_processing_pil_glm_image import GlmImageImageProcessorPil

from omnimuse.ar.kv import KV, Slabs
from omnimuse.core.config import Config, ModelConfig, ScheduleConfig
from omnimuse.core.errors import RequestError
from omnimuse.core.output import Failed, Progress
from omnimuse.core.request import Ask
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.media.picture import picture_of
from omnimuse.models.glm_image.reading import Pieces, sampling, wanted_grids
from omnimuse.pipeline.generate import CHUNK
from omnimuse.pipeline.stage import Loop
from omnimuse.pipeline.state import State
from omnimuse.worker.explain import explain
from tests.checkpoints.glm_image import (
    CODES,
    FAMILIES,
    MARKS,
    PIXELS,
    SKETCHED,
    build,
    read_by_the_reference,
    reference,
)
from tests.checkpoints.wishes import Wish, of_picture, photo
from tests.invariants.conftest import drain, outputs, submit

pytestmark = pytest.mark.costly("what writes before it draws")

EDIT, DRAW = FAMILIES[0].wishes[3], SKETCHED
LONG = replace(EDIT, prompt="a circle. " * CHUNK, image=photo(64, 64), others=(photo(32, 32),) * 3)
"""More is read than in one step, and as many pictures as there may be."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("glm") / "tiny")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    schedule = ScheduleConfig(strict_slots=True, company="always")
    made = start(Config(ModelConfig(str(folder), dtype="float32", device="cpu"), schedule=schedule))
    yield made
    assert not made.runner.forwards.retries, "rows that cannot share a forward are a fault of the family"
    made.close()


def ask(wish: Wish, **choices: object) -> Ask:
    return Ask(wish.asked, replace(wish.params, **{"output_type": "latent", **choices}))  # type: ignore[arg-type]


def states(engine: Engine, id_: str) -> list[State]:
    return [state for state in engine.runner.states.values() if state.id.startswith(id_)]


def where(engine: Engine, state: State) -> str:
    stage = engine.runner.pipeline.stage_of(state)
    assert stage is not None
    return stage.name


def until(engine: Engine, stage: str, *ids: str) -> list[State]:
    """Ticks until all of them are in that loop; their states."""
    for _ in range(600):
        found = [state for id_ in ids for state in states(engine, id_)]
        if found and all(where(engine, state) == stage and state.position for state in found):
            return found
        engine.tick()
    raise AssertionError(f"not all came to {stage}")


def priors(engine: Engine, *asks: Ask) -> list[Tensor]:
    """What is written for all of them, in flight together."""
    ids, found = submit(engine, *asks), dict[str, Tensor]()
    while not engine.idle:
        engine.tick()
        for state in engine.runner.states.values():
            if "prior" in state and "kv" not in state:
                found[state.id.rpartition("/")[0]] = state["prior"].clone()
    return [found[id_] for id_ in ids]


def expected_priors(folder: Path, wishes: Sequence[Wish]) -> list[Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reference's own
        return read_by_the_reference(folder, wishes)


def test_all_tokens_are_those_of_the_reference_with_different_requests_in_flight(folder: Path, engine: Engine) -> None:
    wide = replace(DRAW, prompt="two stars", params=of_picture(2, 1.0, 64, 96, 31))
    wishes = [DRAW, EDIT, LONG, wide]
    for found, expected in zip(priors(engine, *map(ask, wishes)), expected_priors(folder, wishes), strict=True):
        assert found.tolist() == expected.tolist()


def test_a_picture_from_nothing_but_a_text_is_the_references(folder: Path, engine: Engine) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reference's own
        [expected] = reference(folder, [DRAW], "latent")
    [id_] = submit(engine, ask(DRAW))
    found = outputs(drain(engine), id_)[0]
    assert float((found - expected).norm() / expected.norm()) <= 1e-5


def test_what_is_chosen_follows_the_seed_and_what_the_checkpoint_says_of_choosing(folder: Path, engine: Engine) -> None:
    how = sampling(Checkpoint(folder).configs)
    assert (how.temperature, how.top_p, how.top_k) == (0.9, 0.75, 50)
    first, again, other = priors(engine, ask(EDIT), ask(EDIT), ask(EDIT, seed=10))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_given_tokens_are_those_that_are_drawn(engine: Engine) -> None:
    [written], [expected] = (
        priors(engine, ask(DRAW)),
        [outputs(drain(engine), id_) for id_ in submit(engine, ask(DRAW))],
    )
    [given] = submit(engine, ask(DRAW, extra={"prior_token_ids": written.tolist()}))
    assert torch.equal(outputs(drain(engine), given), expected)


def test_outputs_of_one_request_are_requests_with_seeds_in_a_row(engine: Engine) -> None:
    [many, *alone] = submit(engine, ask(EDIT, num_outputs_per_prompt=2), ask(EDIT), ask(EDIT, seed=10))
    events = drain(engine)
    whole = outputs(events, many)
    for index, id_ in enumerate(alone):
        assert torch.allclose(whole[index], outputs(events, id_)[0], atol=1e-5)


def test_a_picture_of_any_size_is_shown_as_it_is_read(engine: Engine) -> None:
    [id_] = submit(engine, ask(replace(EDIT, image=photo(75, 50), others=())))
    events = drain(engine)
    assert outputs(events, id_).isfinite().all()
    [shown] = [event.result.shown for event in events if hasattr(event, "result")]
    assert shown == ((64, 64),)


@pytest.mark.parametrize("size", [(96, 64), (75, 50), (31, 90), (400, 300), (17, 16), (64, 255)])
def test_patches_are_those_of_the_references_own_preparation(folder: Path, size: tuple[int, int]) -> None:
    picture = photo(*size)
    theirs = GlmImageImageProcessorPil(size=PIXELS, patch_size=16, temporal_patch_size=1, merge_size=1)
    expected = theirs(picture, return_tensors="pt")
    pieces = Pieces.told(Checkpoint(folder).configs)
    found, grid = pieces(picture)
    assert [1, *grid] == expected.image_grid_thw[0].tolist()
    assert grid == pieces.grid(picture_of(picture))
    assert torch.equal(found, expected.pixel_values)


def test_it_can_be_paused_among_the_tokens(engine: Engine) -> None:
    [expected] = [outputs(drain(engine), id_) for id_ in submit(engine, ask(EDIT))]
    [id_] = submit(engine, ask(EDIT))
    until(engine, "write prior", id_)
    engine.pause(id_)
    engine.tick()
    assert engine.idle, "it is parked"
    engine.resume(id_)
    assert torch.equal(outputs(drain(engine), id_), expected)


def test_one_that_is_cancelled_among_the_tokens_is_gone_and_the_others_are_unchanged(engine: Engine) -> None:
    [expected] = priors(engine, ask(DRAW))
    [gone, left] = submit(engine, ask(DRAW, seed=1), ask(DRAW))
    until(engine, "write prior", gone, left)
    engine.cancel(gone)
    [state] = until(engine, "denoise", left)
    assert not states(engine, gone)
    assert torch.equal(state["prior"], expected)
    assert "kv" not in state, "nobody reads what was remembered any more"
    drain(engine)


def test_a_token_that_cannot_be_computed_ends_its_own_request(engine: Engine) -> None:
    [expected] = priors(engine, ask(DRAW))
    [bad, good] = submit(engine, ask(DRAW, seed=1), ask(DRAW))
    [broken, _] = until(engine, "write prior", bad, good)
    broken["kv"] = KV(Slabs(), None, broken["kv"].whole, broken["kv"].data[:1, :, None])  # layers are missing
    events = engine.tick()
    assert [event.request_id for event in events if isinstance(event, Failed)] == [bad]
    [state] = until(engine, "denoise", good)
    assert torch.equal(state["prior"], expected)
    drain(engine)
    assert engine.runner.forwards.retries.total() == 1, "the forward that the bad row was in"
    engine.runner.forwards.retries.clear()


def test_a_token_that_cannot_be_drawn_or_would_end_the_picture_is_chosen_once_more(tmp_path: Path) -> None:
    folder = build(tmp_path / "tiny", writes=CODES + len(MARKS) + 6)
    engine = start(Config(ModelConfig(str(folder), dtype="float32", device="cpu")))
    [id_] = submit(engine, ask(DRAW))
    while (state := until(engine, "write prior", id_)[0]).position < len(state.plan) - 1:
        engine.tick()
    written = state.working["tokens"].tolist()[len(state["brief"].ids) :]
    [state] = until(engine, "denoise", id_)
    prior = state["prior"].tolist()
    engine.close()
    assert max(written) >= CODES + len(MARKS), "a sketch is read again and not drawn"
    assert CODES + 1 not in written, "which ends a text"
    assert max(prior) < CODES


def test_progress_tells_the_two_loops_apart_and_of_how_many_steps_each_is(engine: Engine) -> None:
    [id_] = submit(engine, ask(EDIT))
    events = [event for event in drain(engine) if isinstance(event, Progress) and event.request_id == id_]
    loops = [stage.name for stage in engine.runner.pipeline.stages if isinstance(stage, Loop)]
    assert loops == ["write prior", "denoise"]
    steps = {loop: [(event.step, event.steps) for event in events if event.stage == loop] for loop in loops}
    assert steps == {"write prior": [(i, 9) for i in range(1, 10)], "denoise": [(i, 3) for i in (1, 2, 3)]}


def test_what_is_remembered_of_a_token_is_told_with_the_memory(folder: Path, engine: Engine) -> None:
    told = explain(Config(ModelConfig(str(folder), dtype="float32", device="cpu")))
    [memory] = [choice.value for choice in told if choice.name == "vision_language_encoder, remembered"]
    [id_] = submit(engine, ask(EDIT))
    [state] = until(engine, "write prior", id_)
    kept = state["kv"]
    assert memory == "256 bytes a token"
    assert kept.data.nbytes == kept.room * 2 * 2 * 16 * 4, "two layers, keys and values, one head of 16 numbers"
    drain(engine)


def test_a_picture_that_starts_from_nothing_is_sketched_first(engine: Engine) -> None:
    for size, sketch in (((64, 64), (16, 16)), ((96, 32), (9, 27)), ((32, 64), (22, 11))):
        wish = replace(DRAW, params=replace(DRAW.params, width=size[0], height=size[1]))
        request = engine.make_request(ask(wish))
        assert wanted_grids(request, 32) == [(size[1] // 32, size[0] // 32), sketch]


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        (replace(EDIT, image=photo(40, 200)), "neither more than 4 times those of the other"),
        (replace(EDIT, image=photo(12, 30)), "both sides must have 16 pixels"),
        (replace(DRAW, prompt="an <|image|> of a star"), "which stands for a picture"),
        (replace(DRAW, prompt="a star <|dit_token_65|>"), "tokens that stand for pictures"),
        (replace(DRAW, prompt="a star, " * 1500), "reads and writes 2048 in all"),
    ],
)
def test_what_the_language_model_cannot_read_ends_its_own_request(engine: Engine, wish: Wish, says: str) -> None:
    [id_] = submit(engine, ask(wish))
    with pytest.raises(RequestError, match=says):
        outputs(drain(engine), id_)
