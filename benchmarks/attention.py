"""Packed rows of different lengths by FlexAttention and by one call of `sdpa` a row, as a table of ratios.

    python -m benchmarks.attention [--compiled]

On a CPU, in float32, with two threads; seconds of processor time, the least of `--rounds` in turns. `--compiled` has
torch compile FlexAttention for every set of lengths besides, and says how long each takes until it first runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from omnimuse.attention.backends.flex import BLOCK, Blocks
from omnimuse.attention.layout import Layout
from omnimuse.attention.selection import BACKENDS

CPU = torch.device("cpu")
HEADS, WIDTH = 8, 64
ROWS = ((300, 77, 500), (30,) * 16 + (17,) * 16, (1024, 256, 700))


def compiled(layout: Layout) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """FlexAttention compiled for the lengths of `layout` alone."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    rows, _, *tables = Blocks.of(layout, layout, CPU)
    size = (len(rows), len(rows))
    mask = BlockMask.from_kv_blocks(*tables, BLOCK, lambda b, n, s, k: rows[s] == rows[k], size)
    attend = torch.compile(flex_attention, dynamic=False)

    def packed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(*(x.transpose(1, 2) for x in (q, k, v)), block_mask=mask).transpose(1, 2)  # type: ignore[operator]

    return packed


def least(rounds: int, works: dict[str, Callable[[], Tensor]]) -> dict[str, float]:
    """Seconds of processor time of each, in turns."""
    found = dict.fromkeys(works, float("inf"))
    for _ in range(rounds):
        for name, work in works.items():
            begun = time.process_time()
            work()
            found[name] = min(found[name], time.process_time() - begun)
    return found


def compare(lengths: tuple[int, ...], rounds: int, compiling: bool) -> str:
    """A line of the table."""
    layout = Layout(lengths)
    q, k, v = (torch.randn(1, sum(lengths), HEADS, WIDTH) for _ in range(3))
    works: dict[str, Callable[[], Tensor]] = {
        name: partial(BACKENDS[name].packed, q, k, v, layout, layout) for name in ("sdpa", "flex")
    }
    took = ""
    if compiling:
        begun, works["compiled"] = time.monotonic(), partial(compiled(layout), q, k, v)
        torch.testing.assert_close(works["compiled"](), works["sdpa"](), atol=1e-5, rtol=1e-5)
        took = f"{time.monotonic() - begun:.0f} s"
    works["flex"]()
    found = least(rounds, works)
    ratios = {name: f"{seconds / found['sdpa']:.1f}" for name, seconds in found.items()}
    named = ", ".join(map(str, lengths)) if len(lengths) < 4 else f"{len(lengths)} rows of {sorted(set(lengths))}"
    return f"| {named} | {ratios['flex']} | {ratios.get('compiled', '')} | {took} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compiled", action="store_true", help="have FlexAttention compiled, too")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(2)
    print(
        "| tokens of each row | `flex` over `sdpa` | compiled over `sdpa` | until it is compiled |\n|---|---|---|---|"
    )
    for lengths in ROWS:
        print(compare(lengths, options.rounds, options.compiled), flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
