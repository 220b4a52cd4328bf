"""Many prompts, each saved when it is done; run it again and it draws what is missing: `python examples/many.py`."""

from __future__ import annotations

import sys
from pathlib import Path

from omnimuse import Omni

PROMPTS = [f"a {colour} {shape}" for colour in ("red", "blue") for shape in ("circle", "star", "ring")]


def main(model: str = "omnimuse/shapes", folder: str = "many") -> None:
    files = {prompt: Path(folder) / f"{prompt.replace(' ', '-')}.png" for prompt in PROMPTS}
    missing = [prompt for prompt, file in files.items() if not file.exists()]
    Path(folder).mkdir(exist_ok=True)
    with Omni(model) as omni:
        for place, result in omni.stream(missing, seed=1):
            if result.error is not None:
                print(f"{missing[place]}: {result.error}")
                continue
            result.images[0].save(files[missing[place]])
            print(files[missing[place]])


if __name__ == "__main__":
    main(*sys.argv[1:])
