"""What Wan VACE lets people ask for, and what becomes of what is given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from omnimuse import Config, ModelConfig, Omni
from omnimuse.core.errors import ModelError, RequestError
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask, Door, Request
from omnimuse.loader.components import quiet
from omnimuse.media.clip import clip_of
from omnimuse.media.picture import mask_of, picture_of
from omnimuse.models.wan_vace.pipeline import fitted, masks
from omnimuse.models.wan_vace.spec import SPEC, limits
from omnimuse.models.wan_vace.transformer import VaceConfig
from tests.checkpoints import wan_vace
from tests.checkpoints.wishes import film, halves, photo


def configs(**transformer: object) -> dict[str, dict[str, object]]:
    plain = {"in_channels": 16, "vace_in_channels": 96}
    return {"transformer": {**plain, **transformer}, "vae": {}, "scheduler": {}, "options": {}}


def request(prompt: dict[str, Any], **params: Any) -> Request:
    door = Door.of(SPEC, configs(), "")
    return door.make_request(Ask({"prompt": "x", **prompt}, DiffusionParams(**params)), 0.0, 1)


FILM = clip_of(film(32, 16, 5))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"mask": mask_of(halves(32, 16))}, r"mask says what to draw anew of a video, and there is none"),
        ({"videos": [FILM], "mask": mask_of(halves(16, 16))}, "the mask has 16x16 pixels and the video 32x16"),
        ({"videos": [FILM], "mask": clip_of(film(32, 16, 4))}, "the mask has 4 frames and the video 5"),
        ({"videos": [FILM], "mask": "white"}, "mask must be a picture or a video, got str"),
        ({"videos": [FILM], "pad": [0, 0, 16, 0]}, "of a video nothing does; leave it out"),
        ({"images": [picture_of(photo(16, 16))] * 5}, "5 pictures were given; wan_vace takes at most 4"),
    ],
)
def test_a_mask_lies_over_a_video_frame_by_frame(prompt: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        request(prompt)


def test_parameters_of_other_kinds_are_refused_and_the_scale_is_bounded() -> None:
    with pytest.raises(RequestError, match="strength means nothing to wan_vace"):
        request({}, strength=0.5)
    with pytest.raises(RequestError, match="conditioning_scale"):
        request({}, extra={"conditioning_scale": -1.0})


def test_a_network_that_is_given_something_else_is_refused() -> None:
    with pytest.raises(ModelError, match="vace_in_channels=80; with this autoencoder a network is given 96"):
        limits(configs(vace_in_channels=80))
    for layers in ((), (1, 2), (0, 4), (0, 2, 1), (0, 0)):
        with pytest.raises(ModelError, match="they begin with 0, rise"):
            VaceConfig(num_layers=4, vace_layers=layers)


def test_one_mask_holds_for_all_frames_and_none_for_everything() -> None:
    made = request({"videos": [FILM], "mask": mask_of(halves(32, 16))}, width=32, height=16, num_frames=5)
    each = list(masks(made))
    assert len(each) == 5 and all(torch.equal(mask, each[0]) for mask in each)
    assert (each[0][0, 0], each[0][0, -1]) == (0, 1)
    assert all(bool((mask == 1).all()) for mask in masks(replace(made, region=None)))


@pytest.mark.parametrize(("width", "height"), [(40, 20), (20, 40), (9, 64)])
def test_a_picture_that_is_shown_lies_whole_in_the_middle_of_white(width: int, height: int) -> None:
    shown = fitted(request({}, width=64, height=48), picture_of(photo(width, height)), 8)
    assert shown.shape == (3, 48, 64)
    inside = (shown < 0.999).any(dim=0)
    rows, columns = (inside.any(dim=side).nonzero()[:, 0] for side in (1, 0))
    assert abs((int(rows[0]) + int(rows[-1]) + 1) - 48) <= 2 and abs((int(columns[0]) + int(columns[-1]) + 1) - 64) <= 2
    assert max(len(rows) / 48, len(columns) / 64) > 0.95


def test_a_checkpoint_with_one_network_gives_the_references_video(tmp_path: Path) -> None:
    folder, wish = wan_vace.build(tmp_path / "tiny", experts=False), wan_vace.FAMILIES[0].wishes[2]
    with quiet("diffusers"), quiet("transformers"):
        [expected] = wan_vace.reference(folder, [wish], "latent")
    with Omni(str(folder), config=Config(ModelConfig(str(folder), dtype="float32", device="cpu"))) as omni:
        [made] = omni.generate(wish.asked, replace(wish.params, output_type="latent"), progress=False)
    assert float((made.output[0] - expected).abs().max()) <= 1e-5


def test_with_a_scale_of_nothing_what_is_given_does_nothing(tmp_path: Path) -> None:
    folder = str(wan_vace.build(tmp_path / "tiny"))
    params = DiffusionParams(num_inference_steps=2, height=32, width=32, num_frames=5, seed=3, output_type="latent")

    def drawn(omni: Omni, scale: float, **given: Any) -> Tensor:
        chosen = replace(params, extra={"conditioning_scale": scale})
        [result] = omni.generate({"prompt": "a star", **given}, chosen, progress=False)
        return result.output[0]

    with Omni(folder, config=Config(ModelConfig(folder, dtype="float32", device="cpu"))) as omni:
        clip = list(film(32, 32, 5))
        assert torch.equal(drawn(omni, 0.0), drawn(omni, 0.0, videos=[clip]))
        assert not torch.allclose(drawn(omni, 1.0), drawn(omni, 1.0, videos=[clip]), atol=1e-3)
