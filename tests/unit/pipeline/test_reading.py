"""Pictures and prompts are read by a language model as transformers reads them, without torchvision."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_dimensions
from PIL import Image
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from omnimuse.core.errors import ModelError, RequestError
from omnimuse.core.request import Door, Picture, Request
from omnimuse.core.sizes import of_area
from omnimuse.loader.tensors import DtypePolicy
from omnimuse.loader.weights import randomise
from omnimuse.media.picture import picture_of
from omnimuse.offload.residency import Residency
from omnimuse.pipeline.reading import PLACE, Framed, Patches, ReadWithPictures
from omnimuse.pipeline.stage import Context
from omnimuse.pipeline.state import State
from tests.checkpoints import parts, seeing
from tests.checkpoints.seeing import MEDIA
from tests.checkpoints.seeing import PIXELS as SMALL
from tests.checkpoints.wishes import photo
from tests.fakes import SPEC, ask, context


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("size", [(64, 64), (100, 37), (20, 300), (500, 400), (28, 28), (71, 99)])
@pytest.mark.parametrize("config", [{}, SMALL, {"size": {"shortest_edge": 4000, "longest_edge": 9000}}])
def test_a_picture_becomes_the_patches_of_the_published_processor_with_pillows_arithmetic(
    size: tuple[int, int], config: dict[str, Any]
) -> None:
    theirs = Qwen2VLImageProcessorPil(**config)(photo(*size), return_tensors="pt")
    for written in (config, {"image_processor": {**config, "patch_size": 14}, "processor_class": "Qwen2VLProcessor"}):
        patches, grid = Patches.of(written)(photo(*size))
        assert theirs.image_grid_thw.tolist() == [[1, *grid]]
        assert torch.allclose(patches, theirs.pixel_values, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "words"), [({"do_resize": False}, "do_resize=False"), ({"resample": 2}, "resample=2")]
)
def test_a_processor_that_prepares_otherwise_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        Patches.of(config)


def test_a_picture_that_is_far_too_narrow_is_refused_with_its_size() -> None:
    with pytest.raises(RequestError, match="2x500 is too narrow"):
        Patches().fitted(2, 500)


@pytest.mark.parametrize("size", [(1024, 1024), (1920, 1080), (333, 1000), (50, 49)])
@pytest.mark.parametrize("area", [384 * 384, 1024 * 1024])
def test_sizes_of_an_area_are_those_of_the_reference(size: tuple[int, int], area: int) -> None:
    assert of_area(*size, area) == tuple(calculate_dimensions(area, size[0] / size[1])[:2])


@dataclass(frozen=True)
class Reader:
    """A small model that sees, its tokenizer, and where it is used."""

    model: Any
    tokenizer: Any
    ctx: Context

    def read(self, stage: ReadWithPictures, prompt: str, *pictures: Image.Image) -> Tensor:
        made = Door.of(SPEC, {}, "fake").make_request(ask(prompt), 0.0, 1)
        state = State(replace(made, images=tuple(picture_of(picture) for picture in pictures)), 0)
        stage.run(self.ctx, [state])
        return state["positive_embeds"]


@pytest.fixture(scope="module")
def reader() -> Reader:
    with torch.inference_mode(False):
        tokenizer = seeing.tokenizer()
        ids = tokenizer.convert_tokens_to_ids(list(MEDIA))
        model = parts.qwen25_vl(len(tokenizer), media=ids)
        randomise(model, 0, "text_encoder", DtypePolicy(torch.float32), "cpu")
        model.eval().requires_grad_(False)
    components = Residency({"text_encoder": model.model, "tokenizer": tokenizer})
    configs = {"processor": SMALL}
    return Reader(model, tokenizer, replace(context(), components=components, configs=configs))


def framed(prompt: str, pictures: int) -> str:
    return f"user {''.join(f'{MEDIA[0]}{PLACE}{MEDIA[1]}' for _ in range(pictures))}{prompt} assistant"


def as_it_is(request: Request, picture: Picture) -> list[tuple[int, int]]:
    return [(picture.width, picture.height)]


STAGE = ReadWithPictures(Framed(framed, drop=1), as_it_is)


def theirs(reader: Reader, prompt: str, pictures: list[Image.Image], *, told: bool = True) -> Tensor:
    """The states of transformers' whole model, told which tokens are pictures, or not."""
    seen = Qwen2VLImageProcessorPil(**SMALL)(pictures, return_tensors="pt")
    text = framed(prompt, len(pictures)).replace(PLACE, "{}")
    counts = [int(grid.prod()) // 4 for grid in seen.image_grid_thw]
    tokens = reader.tokenizer(text.format(*(PLACE * count for count in counts)), return_tensors="pt")
    kinds = {"mm_token_type_ids": (tokens.input_ids == reader.model.config.image_token_id).int()} if told else {}
    made = reader.model(**tokens, **kinds, **seen, output_hidden_states=True)
    return made.hidden_states[-1][0, 1:]


def test_states_of_a_prompt_with_pictures_are_those_of_the_whole_model_told_where_they_are(reader: Reader) -> None:
    pictures = [photo(64, 64), photo(100, 60)]
    found = reader.read(STAGE, "a red circle", *pictures)
    expected = theirs(reader, "a red circle", pictures)
    assert found.shape == expected.shape
    assert float((found - expected).norm() / expected.norm()) < 1e-5
    lost = theirs(reader, "a red circle", pictures, told=False)
    assert float((lost - expected).norm() / expected.norm()) > 1e-2, "positions depend on it"


def test_a_prompt_without_a_picture_is_read_as_plain_text(reader: Reader) -> None:
    tokens = reader.tokenizer(framed("a star", 0), return_tensors="pt")
    expected = reader.model(**tokens, output_hidden_states=True).hidden_states[-1][0, 1:]
    assert torch.allclose(reader.read(STAGE, "a star"), expected, atol=1e-5)


def test_what_stands_for_a_picture_cannot_be_written_into_a_prompt(reader: Reader) -> None:
    with pytest.raises(RequestError, match=r"the prompt holds <\|image_pad\|>"):
        reader.read(STAGE, f"a {PLACE}", photo(64, 64))


def test_runs_are_told_apart_by_prompt_pictures_and_choices(reader: Reader) -> None:
    def key(stage: ReadWithPictures, prompt: str, *pictures: Image.Image) -> Any:
        made = Door.of(SPEC, {}, "fake").make_request(ask(prompt), 0.0, 1)
        return stage.key(reader.ctx, State(replace(made, images=tuple(map(picture_of, pictures))), 0))

    first = key(STAGE, "a star", photo(64, 64))
    assert key(STAGE, "a star", photo(64, 64)) == first
    others = [
        key(STAGE, "a ring", photo(64, 64)),
        key(STAGE, "a star", photo(64, 65)),
        key(STAGE, "a star"),
        key(replace(STAGE, tokens=Framed(framed, drop=2)), "a star", photo(64, 64)),
    ]
    assert first not in others
