"""The image autoencoder against diffusers': `python -m benchmarks.autoencoder`. Same weights, alternating, one process.

Prints the median seconds of decoding, and how far the results are apart.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

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
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    theirs = published_vae().eval()
    ours = AutoencoderKL.from_config(theirs.config).eval()
    ours.load_state_dict(theirs.state_dict())
    for network in (ours, theirs):
        network.to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    side = args.side // 8
    latents = torch.randn(1, 16, side, side, generator=torch.Generator().manual_seed(0)).to(dtype)
    ways: dict[str, Callable[[], Tensor]] = {
        "omnimuse": lambda: ours.decode(latents),
        "diffusers": lambda: theirs.decode(latents, return_dict=False)[0],
    }
    found, times = {name: way() for name, way in ways.items()}, {name: list[float]() for name in ways}
    for number in range(args.rounds):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            began = time.perf_counter()
            ways[name]()
            times[name].append(time.perf_counter() - began)
    mine, other = (statistics.median(times[name]) for name in ("omnimuse", "diffusers"))
    apart = (found["omnimuse"] - found["diffusers"]).float().norm() / found["diffusers"].float().norm()
    print(f"{args.side}x{args.side}, {args.dtype}: {mine:.3f} s against {other:.3f} s, ratio {mine / other:.2f}")
    print(f"relative difference of the pictures: {float(apart):.1e}")


if __name__ == "__main__":
    main()
