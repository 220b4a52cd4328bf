"""How ranks share out the weights of networks of two streams (`two_streams.py`), by the names that their parts have."""

from __future__ import annotations

from omnimuse.core.plans import Columns, Cutting, Rows

GATHERED = Columns(others=1, gather=True)
"""What modulates blocks has as many outputs as weights, so every rank makes some, and all have all."""


def two_stream_plan(*, double: bool, single: bool, entering: int, shared: bool) -> dict[str, Cutting]:
    """The plan of a network that has `double` blocks, `single` ones, or both, whose MLPs begin with so many products,
    and that modulates all blocks alike where that is `shared`.
    """
    plan: dict[str, Cutting] = {"head.modulation": GATHERED}
    if shared:
        plan["modulations.*"] = GATHERED
    if double:
        stream = "stack.double_blocks.*.*"
        plan |= {f"{stream}.qkv.linear": Columns(queries=1, keys=2), f"{stream}.to_out": Rows(queries=1)}
        plan |= {f"{stream}.mlp.0": Columns(others=entering), f"{stream}.mlp.2": Rows(others=1)}
        plan |= {} if shared else {f"{stream}.modulation": GATHERED}
    if single:
        block = "stack.single_blocks.*"
        plan |= {f"{block}.qkv.linear": Columns(queries=1, keys=2, others=entering)}
        plan |= {f"{block}.to_out": Rows(queries=1, others=1)}
        plan |= {} if shared else {f"{block}.modulation": GATHERED}
    return plan
