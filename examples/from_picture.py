"""A picture from a picture: `python examples/from_picture.py [MODEL]`."""

from __future__ import annotations

import sys

from PIL import Image

from omnimuse import Omni


def main(model: str = "omnimuse/shapes") -> None:
    start = Image.new("RGB", (128, 128), "navy")
    start.paste("white", (40, 40, 88, 88))
    with Omni(model) as omni:
        prompt = {"prompt": "a yellow circle on a blue background", "images": [start]}
        [result] = omni.generate(prompt, strength=0.9, seed=3)
    result.images[0].save("circle.png")
    print("circle.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
