"""Whatever takes time has a label in recordings and measurements, in every family, and one that is true."""

from __future__ import annotations

import pytest

from omnimuse.compat.contract.pipeline import Whole
from omnimuse.compat.contract.steps import Finish, Prepare, Steps
from omnimuse.compat.diffusers.pipeline import CallEnd, CallSteps
from omnimuse.core.spec import Spec
from omnimuse.models import REGISTRY
from omnimuse.observe.labels import MADE, OTHER, PICTURE, SEEN, STAGES, STEPS, TEXT, WRITING, label_of
from omnimuse.pipeline.stage import Loop, Stage

TRUE = {
    "text_encoder": {TEXT},
    "image_encoder": {SEEN},
    "vae": {PICTURE, SEEN, MADE},
    "transformer": {STEPS},
    "model": {"prefill", WRITING, STEPS},
}
"""What a stage may be called that uses a component whose name begins so."""


def networks(spec: Spec, stage: Stage) -> list[str]:
    """The components with weights that `stage` uses."""
    parts = {name: spec.components[name] for name in stage.uses}
    return [n for n, each in parts.items() if each.built and each.part != "tokenizer" and not n.startswith("tokenizer")]


@pytest.mark.parametrize("spec", REGISTRY.specs(), ids=lambda spec: spec.arch)
def test_every_loop_and_every_stage_with_a_network_has_a_label(spec: Spec) -> None:
    for stage in REGISTRY.pipeline(spec.arch).stages:
        used = networks(spec, stage)
        assert stage.label in STAGES
        if used or isinstance(stage, Loop):
            assert stage.label != OTHER, f"{stage.name!r}, which uses {', '.join(used)}"
        for name in used:
            [true] = [each for beginning, each in TRUE.items() if name.startswith(beginning)] or [STAGES]
            assert stage.label in true, f"{stage.name!r}, which uses {name}"


@pytest.mark.parametrize(
    ("stage", "label"),
    [
        *((Prepare(), TEXT), (Steps(), STEPS), (Finish("image"), MADE), (Whole("image"), "forward")),
        *((CallSteps, STEPS), (CallEnd, MADE)),
    ],
)
def test_guests_have_the_same_labels(stage: Stage | type[Stage], label: str) -> None:
    assert label_of(stage.name) == label


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("encode prompt (text_encoder_2)", TEXT),
        ("vae.decode", MADE),
        ("diffuse", STEPS),
        ("tokenizer.forward", "tokenizer.forward"),
        ("init latents", OTHER),
        ("clamp", OTHER),
    ],
)
def test_a_label_goes_by_the_name_without_its_encoder_and_is_itself_one(name: str, label: str) -> None:
    assert label_of(name) == label
