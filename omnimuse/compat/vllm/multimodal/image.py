"""`vllm.multimodal.image`."""

from __future__ import annotations

from typing import Any

from PIL import Image

from omnimuse.compat.contract.names import no_name
from omnimuse.media.image import over_white


def convert_image_mode(image: Image.Image, to_mode: str) -> Image.Image:
    """`image` in another mode of Pillow; what is transparent in it lies over white where the new mode has no alpha."""
    if image.mode == to_mode:
        return image
    return over_white(image) if (image.mode, to_mode) == ("RGBA", "RGB") else image.convert(to_mode)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
