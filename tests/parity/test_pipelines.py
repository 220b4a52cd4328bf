"""Every registered pipeline against the reference implementation: same weights, noise and parameters, float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from omnimuse import Config, ModelConfig, Omni
from omnimuse.core.errors import ModelError
from omnimuse.core.request import Ask
from omnimuse.parity.report import verdict
from omnimuse.parity.run import parity
from tests.checkpoints.families import FAMILIES
from tests.checkpoints.parts import with_scheduler
from tests.checkpoints.wishes import TOLERANCE, Family, Wish
from tests.rounding import reference

Expected = Callable[[str], list[Tensor]]
Ours = Callable[[list[Wish], str], list[Tensor]]
NO_FLOW = "its noise levels are no flow's: a shift and a scheduler are refused"

# diffusers hands torch tensors to numpy in a way that numpy 2 wants spelled differently.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning", "ignore:__array_wrap__:DeprecationWarning"
)


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture(scope="module")
def folder(family: Family, tiny: Callable[[str], Path]) -> Path:
    return tiny(family.name)


@pytest.fixture(scope="module")
def expected(family: Family, folder: Path) -> Expected:
    """By output type, what the reference makes of every wish: each alone, so that one call tells it for all tests."""
    return cache(lambda output_type: reference(family, folder, list(family.wishes), output_type))


@pytest.fixture(scope="module")
def ours(folder: Path) -> Iterator[Ours]:
    """What our engine makes of wishes, all in flight together: one engine for all tests of a family."""
    with Omni(str(folder), config=Config(ModelConfig(str(folder), dtype="float32", device="cpu"))) as omni:

        def draw(wishes: list[Wish], output_type: str) -> list[Tensor]:
            params = [replace(wish.params, output_type=output_type) for wish in wishes]  # type: ignore[arg-type]
            results = omni.generate([wish.asked for wish in wishes], params, progress=False)
            for result in results:
                assert result.error is None, result.error
            return [result.output[0] for result in results]

        yield draw


@pytest.mark.crossed
def test_different_requests_in_flight_give_the_references_latents(
    family: Family, ours: Ours, expected: Expected
) -> None:
    for wanted, found in zip(expected("latent"), ours(list(family.wishes), "latent"), strict=True):
        assert found.shape == wanted.shape
        assert float((found - wanted).norm() / wanted.norm()) <= TOLERANCE


@pytest.mark.crossed(turns=3)
@pytest.mark.shows("company", wishes=True)
def test_different_requests_in_flight_give_what_the_reference_makes(
    family: Family, ours: Ours, expected: Expected
) -> None:
    for wanted, found in zip(expected("pt"), ours(list(family.wishes), "pt"), strict=True):
        assert found.shape == wanted.shape
        assert family.far(found, wanted) <= family.tolerance


@pytest.mark.crossed
@pytest.mark.parametrize("index", [0, 1, 2, -1])
def test_one_request_alone_gives_what_the_reference_makes(
    family: Family, folder: Path, ours: Ours, expected: Expected, index: int
) -> None:
    wish = family.wishes[index]
    [found] = ours([wish], "pt")
    assert family.far(found, expected("pt")[index]) <= family.tolerance, where_it_parts(folder, wish)


def where_it_parts(folder: Path, wish: Wish) -> str:
    """What the comparison part by part says, for whoever reads that a test has failed."""
    try:
        outcome = parity(Config(ModelConfig(str(folder), dtype="float32", device="cpu")), Ask(wish.asked, wish.params))
    except ModelError as problem:
        return f"no comparison part by part: {problem}"
    return verdict(outcome, TOLERANCE)


@pytest.mark.crossed
def test_a_wrong_guidance_scale_would_be_noticed(family: Family, ours: Ours, expected: Expected) -> None:
    wish = family.wishes[0]
    scales = {name: getattr(wish.params, name) for name in ("guidance_scale", "true_cfg_scale")}
    off = replace(wish, params=replace(wish.params, **{name: scale * 1.1 for name, scale in scales.items() if scale}))
    if off == wish:
        assert family.kind == "distilled", "its wishes have no scale that could be wrong"
        pytest.skip("this checkpoint takes no guidance")
    [found] = ours([off], "pt")
    assert family.far(found, expected("pt")[0]) > 100 * family.tolerance
    assert torch.isfinite(found).all()


# -- schedules that a request chooses ------------------------------------------------------------------------------

SHIFT = 2.5
CHOSEN: dict[str, tuple[str, dict[str, Any]]] = {
    "unipc": ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True}),
    "dpm++": ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True}),
    "euler": ("FlowMatchEulerDiscreteScheduler", {}),
}


def shifted(scheduler: Any) -> Any:
    """The same with another shift, and none that follows the size."""
    name = "shift" if "shift" in scheduler.config else "flow_shift"
    return type(scheduler).from_config(scheduler.config, **{name: SHIFT, "use_dynamic_shifting": False})


@pytest.mark.crossed
def test_a_flow_shift_for_one_request_is_a_scheduler_built_with_it(
    family: Family, folder: Path, ours: Ours, tmp_path: Path
) -> None:
    if family.sounds:
        pytest.skip(NO_FLOW)
    changed = with_scheduler(folder, tmp_path / "changed", shifted)
    wishes = list(family.wishes)
    asked = [replace(wish, params=replace(wish.params, flow_shift=SHIFT)) for wish in wishes]
    found, plain = ours([*asked, wishes[0]], "latent"), ours([wishes[0]], "latent")
    for expected, mine in zip(reference(family, changed, wishes, "latent"), found, strict=False):
        assert float((mine - expected).norm() / expected.norm()) <= TOLERANCE
    assert float((found[-1] - plain[0]).norm() / plain[0].norm()) <= TOLERANCE, "its neighbours have their own"
    assert float((found[0] - plain[0]).norm() / plain[0].norm()) > 1e-3


@pytest.mark.crossed
@pytest.mark.parametrize("name", CHOSEN)
def test_a_scheduler_for_one_request_is_the_one_that_the_reference_would_be_given(
    family: Family, folder: Path, ours: Ours, tmp_path: Path, name: str
) -> None:
    kind, flow = CHOSEN[name]

    def other(own: Any) -> Any:
        levels = {"shift": SHIFT} if name == "euler" else {"flow_shift": SHIFT}
        if (terminal := own.config.get("shift_terminal")) is not None:
            levels["shift_terminal"] = terminal
        return getattr(diffusers, kind).from_config(
            {"num_train_timesteps": own.config.num_train_timesteps}, **flow, **levels
        )

    if family.sounds:
        pytest.skip(NO_FLOW)
    if name in family.unable:
        pytest.skip(family.unable[name])  # `test_solvers.py` compares such schedulers by hand
    changed = with_scheduler(folder, tmp_path / "changed", other)
    wishes = [wish for wish in family.wishes if wish.image is None]
    asked = [replace(wish, params=replace(wish.params, flow_shift=SHIFT, scheduler=name)) for wish in wishes]
    expected = reference(family, changed, wishes, "latent")
    for wanted, mine in zip(expected, ours(asked, "latent"), strict=True):
        assert float((mine - wanted).norm() / wanted.norm()) <= TOLERANCE


@pytest.mark.crossed
@pytest.mark.parametrize("name", ["euler", "heun", "unipc", "dpm++"])
@pytest.mark.shows("scheduler", "company", wishes=True)
def test_every_scheduler_draws_in_any_number_of_steps(family: Family, ours: Ours, name: str) -> None:
    if family.sounds:
        pytest.skip(NO_FLOW)
    asked = []
    for steps, wish in zip((family.least_steps, 2, 3, 7), (*family.wishes, family.wishes[-1]), strict=False):
        params = replace(wish.params, num_inference_steps=steps, scheduler=name)
        asked.append(replace(wish, params=params))
    for found in ours(asked, "latent"):
        assert torch.isfinite(found).all()
