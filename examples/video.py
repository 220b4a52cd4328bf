"""A video: `python examples/video.py MODEL`, such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers or a folder of one."""

from __future__ import annotations

import sys
from pathlib import Path

from omnimuse import Omni
from omnimuse.media.video import save_video


def main(model: str, frames: str = "33", side: str = "256") -> None:
    with Omni(model) as omni:
        [result] = omni.generate(
            "a paper boat on a pond", num_frames=int(frames), width=int(side), height=int(side), seed=1
        )
    video = result.videos[0]
    save_video(video, Path("boat.mp4"), {"prompt": result.prompt, "seed": result.seeds[0]})
    print(f"boat.mp4: {len(video.frames)} frames, {video.seconds:.1f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
