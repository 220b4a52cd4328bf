"""Pixels survive the way through tensors and files, and settings the way through every format."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, JpegImagePlugin, PngImagePlugin

from omnimuse.core.errors import RequestError
from omnimuse.media.image import (
    FORMATS,
    encode_image,
    from_pixels,
    read_settings,
    save_image,
    to_image,
    to_pixels,
    to_tensor,
)

SETTINGS = {
    "prompt": "ein roter Kreis – 赤い円 🔴",
    "seed": 7,
    "guidance_scale": 1.5,
    "negative_prompt": None,
}


def pixels(channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 4, channels), dtype=np.uint8)  # [h, w, c]


@pytest.mark.parametrize("suffix", sorted(FORMATS))
def test_settings_are_read_back_from_every_format(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix.upper()}"
    save_image(from_pixels(pixels()), path, SETTINGS)
    assert read_settings(path) == SETTINGS
    with Image.open(path) as image:
        assert image.size == (4, 6)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_a_png_keeps_every_pixel(tmp_path: Path, channels: int, mode: str) -> None:
    save_image(from_pixels(pixels(channels)), tmp_path / "a.png", {})
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == mode
        assert np.array_equal(np.asarray(image).reshape(6, 4, channels), pixels(channels))


def test_a_transparent_picture_can_become_a_jpeg(tmp_path: Path) -> None:
    save_image(from_pixels(pixels(4)), tmp_path / "a.jpg", SETTINGS)
    assert read_settings(tmp_path / "a.jpg") == SETTINGS


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_a_chosen_quality_is_used_once_and_the_settings_stay_inside(tmp_path: Path, format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)  # [h, w, c]
    files = [encode_image(from_pixels(noise), format, SETTINGS, quality) for quality in (20, 60, 95)]
    assert len(files[0]) < len(files[1]) < len(files[2])
    assert files[2] == encode_image(from_pixels(noise), format, SETTINGS)
    path = tmp_path / f"a.{format.lower()}"
    path.write_bytes(files[0])
    assert read_settings(path) == SETTINGS


@pytest.mark.parametrize(("quality", "sampling"), [(None, 0), (90, 0), (89, 2)])
def test_a_jpeg_of_high_quality_keeps_the_colour_of_every_pixel(quality: int | None, sampling: int) -> None:
    content = encode_image(from_pixels(pixels()), "JPEG", {}, quality)
    with Image.open(io.BytesIO(content)) as image:
        assert JpegImagePlugin.get_sampling(image) == sampling


def test_a_png_has_no_quality() -> None:
    image = from_pixels(pixels())
    assert encode_image(image, "PNG", SETTINGS, 10) == encode_image(image, "PNG", SETTINGS)


def test_settings_too_long_for_a_jpeg_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"save a \.png"):
        save_image(from_pixels(pixels()), tmp_path / "a.jpg", {"prompt": "x" * 70_000})
    save_image(from_pixels(pixels()), tmp_path / "a.png", {"prompt": "x" * 70_000})
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_picture_from_elsewhere_has_no_settings(tmp_path: Path, suffix: str) -> None:
    from_pixels(pixels()).save(tmp_path / f"a{suffix}")
    with pytest.raises(RequestError, match="carries no settings"):
        read_settings(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 10_000, "[1]", "NaN", '{"a": ' * 5_000])
def test_text_that_is_no_settings_is_none(tmp_path: Path, text: str) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("omnimuse", text)
    from_pixels(pixels()).save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(RequestError, match="carries no settings"):
        read_settings(tmp_path / "a.png")


def test_a_file_that_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(RequestError, match=r"cannot read .*a\.png as a picture"):
        read_settings(tmp_path / "a.png")


def test_values_are_clipped_and_rounded_to_the_nearest_pixel() -> None:
    values = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0, 100.4 / 255]).reshape(1, 1, 1, 6)  # [b, c, h, w]
    assert to_pixels(values).reshape(-1).tolist() == [0, 0, 128, 255, 255, 100]


def test_a_tensor_of_any_float_kind_becomes_a_picture() -> None:
    image = to_image(torch.zeros(3, 5, 4, dtype=torch.bfloat16))  # [c, h, w]
    assert (image.mode, image.size) == ("RGB", (4, 5))


def test_pictures_become_a_tensor_and_come_back() -> None:
    image = from_pixels(pixels())
    tensor = to_tensor([image, image])
    assert tensor.shape == (2, 3, 6, 4)
    assert tensor.dtype == torch.float32
    assert np.array_equal(to_pixels(tensor)[1], pixels())


def test_pictures_of_different_sizes_are_refused() -> None:
    with pytest.raises(RequestError, match="different sizes"):
        to_tensor([Image.new("RGB", (2, 2)), Image.new("RGB", (2, 3))])


def test_an_array_that_is_no_picture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got float64 \[2, 2\]"):
        from_pixels(np.zeros((2, 2)))
