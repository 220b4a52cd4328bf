"""An autoencoder against diffusers': `python -m benchmarks.autoencoder`. Same weights, alternating, one process.

Prints the median seconds of decoding, and how far the results are apart. With `--frames` it is that of Wan's videos.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.checkpoints import published_vae
from omnimuse.components.autoencoder_kl import AutoencoderKL


@torch.inference_mode()
def main() -> None:
    """Decode the same latents with both, again and again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--side", type=int, default=512, help="of the picture, in pixels (default: 512)")
    parser.add_argument("--frames", type=int, default=0, help="decode that many frames by Wan's (default: a picture)")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    ways = of_video(args) if args.frames else of_picture(args)
    found, times = {name: way() for name, way in ways.items()}, {name: list[float]() for name in ways}
    for number in range(args.rounds):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            began = time.perf_counter()
            ways[name]()
            times[name].append(time.perf_counter() - began)
    mine, other = (statistics.median(times[name]) for name in ("omnimuse", "diffusers"))
    apart = (found["omnimuse"] - found["diffusers"]).float().norm() / found["diffusers"].float().norm()
    size = f"{args.side}x{args.side}" + f"x{args.frames}" * bool(args.frames)
    print(f"{size}, {args.dtype}: {mine:.3f} s against {other:.3f} s, ratio {mine / other:.2f}")
    print(f"relative difference of the pictures: {float(apart):.1e}")


def of_picture(args: argparse.Namespace) -> dict[str, Callable[[], Tensor]]:
    """Both ways to decode one picture, of the size of FLUX.1's autoencoder."""
    theirs = published_vae().eval()
    ours = AutoencoderKL.from_config(theirs.config).eval()
    ours.load_state_dict(theirs.state_dict())
    dtype = getattr(torch, args.dtype)
    for network in (ours, theirs):
        network.to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    latents = noise(16, args.side // 8, args.side // 8).to(dtype)
    return {
        "omnimuse": lambda: ours.decode(latents),
        "diffusers": lambda: theirs.decode(latents, return_dict=False)[0],
    }


def of_video(args: argparse.Namespace) -> dict[str, Callable[[], Tensor]]:
    """Both ways to decode a video, of the size of Wan 2.1's autoencoder."""
    from diffusers import AutoencoderKLWan

    from omnimuse.models.wan.autoencoder import WanAutoencoder

    theirs = AutoencoderKLWan().eval()
    ours = WanAutoencoder.from_config(theirs.config).eval()
    ours.load_state_dict(theirs.state_dict())
    dtype = getattr(torch, args.dtype)
    latents = noise(16, 1 + (args.frames - 1) // 4, args.side // 8, args.side // 8).to(dtype)
    each = {"omnimuse": ours.to(dtype), "diffusers": theirs.to(dtype)}
    return {name: partial(lambda vae: vae.decode(latents).sample, vae) for name, vae in each.items()}


def noise(*shape: int) -> Tensor:
    """Latents [1, *shape]."""
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))


if __name__ == "__main__":
    main()
