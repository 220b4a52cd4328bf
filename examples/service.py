"""An asyncio service: several requests at once, previews, a time limit, one that is cancelled.

`python examples/service.py [MODEL]`
"""

from __future__ import annotations

import asyncio
import sys

from omnimuse import AsyncOmni
from omnimuse.core.output import Done, Preview, Progress
from omnimuse.core.request import Ask


async def draw(omni: AsyncOmni, prompt: str, seed: int) -> None:
    """One request of many: all advance together, step by step."""
    previews = 0
    async for event in omni.generate(prompt, seed=seed, previews=3, ask=Ask("", timeout=600.0)):
        if isinstance(event, Preview):
            previews += 1
        elif isinstance(event, Done):
            event.result.images[0].save(f"service-{seed}.png")
            print(f"service-{seed}.png: {prompt}, after {previews} previews")


async def give_up(omni: AsyncOmni) -> None:
    """Leaving the loop cancels the request at its next step."""
    async for event in omni.generate("a black cross", num_inference_steps=1000):
        if isinstance(event, Progress) and event.step >= 2:
            print("no longer wanted")
            return


async def main(model: str = "omnimuse/shapes") -> None:
    async with AsyncOmni(model) as omni:
        await asyncio.gather(draw(omni, "a red circle", 1), draw(omni, "a blue star", 2), give_up(omni))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
