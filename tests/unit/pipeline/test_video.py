"""Decoding as a loop equals the VAE's own decoding, tiled or not, however it is stepped, paused or interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from omnimuse.core.config import Config, ModelConfig, ScheduleConfig
from omnimuse.core.output import Done, Event, Failed, Progress
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.pipeline.scaling import unscaled
from omnimuse.pipeline.stage import Step
from omnimuse.pipeline.state import State
from omnimuse.pipeline.tiles import Tiling, blend
from omnimuse.pipeline.video import DecodeVideo, Grid, preview_middle_frame
from tests.checkpoints import wan
from tests.decoding import around, filled, fresh, random_latents, stepped
from tests.invariants.conftest import drain

CPU = torch.device("cpu")
MAKERS: dict[str, Callable[[], Any]] = {"flat": wan.vae, "patched": wan.deep_vae}
"""A VAE with factor 8, and one with factor 16 that leaves 2 x 2 pixels in its channels."""
CLIP = DiffusionParams(num_inference_steps=2, height=32, width=32, max_sequence_length=16, output_type="pt")


@pytest.fixture(scope="module", params=MAKERS)
def vae(request: pytest.FixtureRequest) -> Any:
    return filled(MAKERS[request.param])


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def latents_for(vae: Any, frames: int, height: int, width: int, seed: int = 3) -> Tensor:
    return random_latents(vae.config.z_dim, frames, height, width, seed=seed)


def theirs(vae: Any, latents: Tensor) -> Tensor:
    """The reference's decoding and post-processing: [F, 3, H, W] in [0, 1]."""
    shape = (1, -1, 1, 1, 1)
    deviation = 1.0 / torch.tensor(vae.config.latents_std).view(shape)
    scaled = latents[None] / deviation + torch.tensor(vae.config.latents_mean).view(shape)
    video = vae.decode(scaled, return_dict=False)[0][0].transpose(0, 1)  # [F, 3, H, W]
    return (video * 0.5 + 0.5).clamp(0, 1)


@pytest.fixture
def tiles(vae: Any) -> Iterator[Any]:
    """The same VAE with tiles of 4 x 4 latents at every third one."""
    ratio = vae.config.scale_factor_spatial
    before = {name: value for name, value in vars(vae).items() if name.startswith(("tile_", "use_"))}
    vae.enable_tiling(4 * ratio, 4 * ratio, 3 * ratio, 3 * ratio)
    yield vae
    for name, value in before.items():
        setattr(vae, name, value)


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_frame_by_frame_is_the_whole_video_bit_for_bit(vae: Any, frames: int) -> None:
    latents = latents_for(vae, frames, 3, 5)
    found = stepped(DecodeVideo(), around(vae), fresh(latents))
    ratio = vae.config.scale_factor_spatial
    assert found.shape == (4 * frames - 3, 3, 3 * ratio, 5 * ratio)
    assert found.dtype == torch.float32
    assert torch.equal(found, theirs(vae, latents))


@pytest.mark.crossed
@pytest.mark.parametrize("size", [(4, 4), (5, 4), (3, 8), (7, 10)])
def test_tiles_are_the_references_tiles_bit_for_bit(tiles: Any, size: tuple[int, int]) -> None:
    latents = latents_for(tiles, 2, *size)
    expected = theirs(tiles, latents)
    assert torch.equal(stepped(DecodeVideo(tile_above=0), around(tiles), fresh(latents)), expected)
    assert torch.equal(stepped(DecodeVideo(), around(tiles, Tiling(4, 4)), fresh(latents)), expected)  # asked for


@pytest.mark.crossed
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_tiles_of_a_chosen_size_are_the_references_of_that_size(tiles: Any, overlap: float) -> None:
    latents, ratio = latents_for(tiles, 2, 13, 10), tiles.config.scale_factor_spatial
    side, stride = 8 * ratio, int(8 * (1 - overlap)) * ratio
    chosen = Tiling(8, side, overlap=overlap, own=True)
    found = stepped(DecodeVideo(), around(tiles, chosen), fresh(latents))
    tiles.enable_tiling(side, side, stride, stride)
    assert torch.equal(found, theirs(tiles, latents))


def test_tiles_are_another_result_so_small_frames_are_not_cut(tiles: Any) -> None:
    latents = latents_for(tiles, 2, 7, 10)
    whole = stepped(DecodeVideo(), around(tiles), fresh(latents))
    tiled = stepped(DecodeVideo(tile_above=0), around(tiles), fresh(latents))
    assert whole.shape == tiled.shape
    assert not torch.allclose(whole, tiled, atol=1e-3)


def test_only_frames_above_the_threshold_are_cut(tiles: Any) -> None:
    pixels = 7 * 10 * tiles.config.scale_factor_spatial**2
    assert len(Grid.of(tiles, 7, 10, pixels).corners) == 1
    assert Grid.of(tiles, 7, 10, pixels - 1).corners == [(row, column) for row in (0, 3, 6) for column in (0, 3, 6, 9)]


def test_there_is_one_step_per_latent_frame_and_tile(tiles: Any) -> None:
    ctx, state = around(tiles), fresh(latents_for(tiles, 3, 4, 7))
    with state.opened_for(DecodeVideo()):
        assert [step.index for step in DecodeVideo().begin(ctx, state)] == [0, 1, 2]
        assert len(DecodeVideo(tile_above=0).begin(ctx, state)) == 3 * 6


@pytest.mark.parametrize("tile_above", [0, 10**9])
def test_what_a_step_remembers_can_be_moved_between_steps(tiles: Any, tile_above: int) -> None:
    loop, latents = DecodeVideo(tile_above=tile_above), latents_for(tiles, 3, 5, 7)

    def park_and_wake(state: State) -> None:
        state.park()
        state.wake(CPU)

    expected = stepped(loop, around(tiles), fresh(latents))
    assert torch.equal(stepped(loop, around(tiles), fresh(latents), park_and_wake), expected)


def test_two_videos_that_are_decoded_in_turn_do_not_disturb_one_another(vae: Any) -> None:
    loop, ctx = DecodeVideo(), around(vae)
    latents = [latents_for(vae, 3, 2, 3, seed) for seed in (1, 2)]
    states = [fresh(each) for each in latents]
    plans = []
    for state in states:
        with state.opened_for(loop):
            plans.append(loop.begin(ctx, state))
    for steps in zip(*plans, strict=True):
        for state, step in zip(states, steps, strict=True):
            with state.opened_for(loop):
                loop.apply(ctx, state, step, {})
    for state, each in zip(states, latents, strict=True):
        with state.opened_for(loop):
            loop.finish(ctx, state)
        # Not to the bit: how a matrix library rounds may depend on where in memory a tensor lies.
        torch.testing.assert_close(state["video"], theirs(vae, each), atol=1e-5, rtol=0)


def test_latents_are_handed_over_as_they_are(vae: Any) -> None:
    latents = latents_for(vae, 2, 3, 5)
    state = fresh(latents, "latent")
    with state.opened_for(DecodeVideo()):
        assert DecodeVideo().begin(around(vae), state) == [Step(0)]
    assert stepped(DecodeVideo(), around(vae), state) is latents


def test_latents_get_the_mean_and_deviation_that_they_had(vae: Any) -> None:
    latents = latents_for(vae, 1, 2, 2)
    scaled = unscaled(vae, vae.config, latents)
    assert torch.allclose(scaled[3], latents[3] * vae.config.latents_std[3] + vae.config.latents_mean[3], atol=1e-6)


def test_a_preview_is_the_middle_frame_decoded_alone_and_small(vae: Any) -> None:
    ctx, ratio = around(vae), vae.config.scale_factor_spatial
    latents = latents_for(vae, 4, 3, 5)
    found = preview_middle_frame(ctx, latents)
    assert torch.allclose(found, theirs(vae, latents[:, 2:3])[0], atol=1e-6)
    assert preview_middle_frame(ctx, latents_for(vae, 1, 8, 64)).shape == (3, 2 * ratio, 16 * ratio)


def test_a_blend_fades_from_one_piece_into_the_next() -> None:
    before, piece = torch.zeros(1, 1, 2, 6), torch.ones(1, 1, 2, 5)
    blend(before, piece, 4, dim=3)
    assert piece[0, 0, 0].tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    blend(before, piece, 0, dim=3)
    assert piece[0, 0, 0].tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]


# -- in the engine ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder: Path = wan.build(tmp_path_factory.mktemp("video") / "tiny", "2.1")
    schedule = ScheduleConfig(strict_slots=True, tier="exact", company="always")
    engine = start(Config(ModelConfig(str(folder), dtype="float32", device="cpu"), schedule=schedule))
    yield engine
    engine.close()


def submit(engine: Engine, frames: int = 17, seed: int = 1) -> str:
    params = replace(CLIP, num_frames=frames, seed=seed)
    return engine.submit(engine.make_request(Ask("a red circle", params)))


def until_decoding(engine: Engine, id_: str, step: int) -> None:
    while not any(
        isinstance(event, Progress) and (event.request_id, event.stage, event.step) == (id_, "decode", step)
        for event in engine.tick()
    ):
        pass


def output(events: list[Event], id_: str) -> Tensor:
    [done] = [event for event in events if isinstance(event, Done) and event.request_id == id_]
    return done.result.output


def test_decoding_shows_progress_and_takes_time_in_the_account(engine: Engine) -> None:
    id_ = submit(engine)
    events = drain(engine)
    steps = [(e.step, e.steps) for e in events if isinstance(e, Progress) and e.stage == "decode"]
    assert steps == [(i + 1, 5) for i in range(5)]
    assert output(events, id_).shape == (1, 17, 3, 32, 32)
    [done] = [event for event in events if isinstance(event, Done)]
    assert done.result.timings["decode"] > 0.0005


def test_decoding_can_be_cancelled_between_steps(engine: Engine) -> None:
    other = submit(engine, frames=5, seed=2)
    expected = output(drain(engine), other)
    stopped = submit(engine)
    until_decoding(engine, stopped, 2)
    kept = submit(engine, frames=5, seed=2)
    engine.cancel(stopped)
    events = drain(engine)
    assert [event.request_id for event in events if isinstance(event, Failed)] == [stopped]
    assert not engine.runner.states
    assert torch.equal(output(events, kept), expected)


def test_a_video_that_is_decoded_while_another_is_denoised_is_the_same(engine: Engine) -> None:
    first = submit(engine)
    expected = output(drain(engine), first)
    again = submit(engine)
    until_decoding(engine, again, 1)
    submit(engine, seed=5)
    assert torch.equal(output(drain(engine), again), expected)


def test_decoding_can_be_paused_and_resumed(engine: Engine) -> None:
    first = submit(engine)
    expected = output(drain(engine), first)
    paused = submit(engine)
    until_decoding(engine, paused, 3)
    engine.pause(paused)
    assert not any(isinstance(event, Progress) for _ in range(2) for event in engine.tick())
    engine.resume(paused)
    assert torch.equal(output(drain(engine), paused), expected)
