"""A prompt, a picture, its settings: `python examples/draw.py [MODEL]`."""

from __future__ import annotations

import sys

from omnimuse import Omni


def main(model: str = "omnimuse/shapes") -> None:
    with Omni(model) as omni:
        [result] = omni.generate("a green triangle above a white square", seed=7)
    result.images[0].save("triangle.png")
    print(f"triangle.png: seed {result.seeds[0]}, {result.params.num_inference_steps} steps")
    for warning in result.warnings:
        print(warning)


if __name__ == "__main__":
    main(*sys.argv[1:])
