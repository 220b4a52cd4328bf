"""Says in plain words how the tensors of a checkpoint differ from those a network has, and what that hints at.

Used by `weights` for our own networks and by `components` for those of libraries. Works on names and shapes; no torch.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from omnimuse.core.errors import ModelError, plain

log = logging.getLogger(__name__)

Shape = tuple[int, ...]
MOST = 8

_BLOCK = re.compile(r"(?P<stack>(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*)\.(?P<number>\d+)\.")
_IDLE = re.compile(
    r"(^|[._])(num_batches_tracked|position_ids|inv_freq|freqs(_(cis|cos|sin))?|(cos|sin)_cached|num_updates)$"
)
_LORA = re.compile(r"lora_(A|B|down|up)\b|\.lora\.")
_QUANTIZED = re.compile(r"(weight_scale(_inv)?|input_scale|qweight|qzeros|scales|absmax|quant_state\..*|quant_map)$")


@dataclass(frozen=True)
class Differences:
    """Names the files lack, names nobody asked for, (name, shape asked for, shape in the files), and (name, number
    format asked for, format in the files) where one does not become the other.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshaped: tuple[tuple[str, Shape, Shape], ...] = ()
    mistyped: tuple[tuple[str, str, str], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshaped or self.mistyped)


def is_idle(name: str) -> bool:
    """Whether the tensor called `name` is a counter, or a table that is computed: it changes nothing."""
    return _IDLE.search(name) is not None


def refuse_differences(folder: Path, found: Differences) -> None:
    """ModelError that lists up to eight names of each kind, with a guess at the cause; nothing if all fits.

    Tensors that are left over and change nothing (`is_idle`) are only told of.
    """
    idle = tuple(filter(is_idle, found.unexpected))
    if idle:
        log.warning("%s has tensors that nothing reads and that change nothing: %s", folder, listed(idle))
        found = replace(found, unexpected=tuple(name for name in found.unexpected if name not in idle))
    if not found:
        return
    parts = []
    if found.missing:
        parts.append(f"{len(found.missing)} missing: {listed(found.missing)}")
    if found.unexpected:
        parts.append(f"{len(found.unexpected)} unexpected: {listed(found.unexpected)}")
    if found.misshaped:
        lines = [
            f"{name} is {_shape(have)}, config.json asks for {_shape(want)}" for name, want, have in found.misshaped
        ]
        parts.append(f"{len(lines)} of another shape: {listed(lines)}")
    if found.mistyped:
        lines = [f"{name} is {have}, this network takes {want}" for name, want, have in found.mistyped]
        parts.append(f"{len(lines)} of another number format: {listed(lines)}")
    text = f"the weights in {folder} do not fit the network that its config.json describes.\n  " + "\n  ".join(parts)
    raise ModelError(f"{text}\n{guess(found)}")


def guess(found: Differences) -> str:
    """What the differences hint at, and what to do."""
    names = found.unexpected
    if any(_LORA.search(name) for name in names):
        return "These look like LoRA adapters, not whole weights: load the base model and give the adapters to it"
    if any(map(_QUANTIZED.search, names)) or any(want.startswith("floats") for _, want, _ in found.mistyped):
        return "These look like quantized weights, which are not read from files: use the checkpoint in float precision"
    if prefix := _prefix(found):
        return (
            f"The names would fit without {prefix!r} in front: a single-file export; convert it to the diffusers layout"
        )
    if width := _width(found):
        return width
    if depth := _depth(found):
        return depth
    if found.missing and found.unexpected and not found.misshaped:
        return (
            f"The names differ, so these weights were saved under other names ({found.unexpected[0]}, where "
            f"{found.missing[0]} is asked for): use a folder that diffusers saved; or, if you are adding this family, "
            "give its weights.py a rule for that name"
        )
    return "Use the config.json that was saved with these weights, or get the checkpoint again"


def _prefix(found: Differences) -> str:
    for name in found.unexpected[:1]:
        for wanted in found.missing:
            if name.endswith("." + wanted):
                prefix = name.removesuffix(wanted)
                fits = sum(prefix + other in found.unexpected for other in found.missing)
                return prefix if 2 * fits >= len(found.missing) else ""
    return ""


def _width(found: Differences) -> str:
    pairs: Counter[tuple[int, int]] = Counter()
    for _, want, have in found.misshaped:
        if len(want) == len(have):
            pairs.update({(w, h) for w, h in zip(want, have, strict=True) if w != h})
    if not pairs:
        return ""
    (want_size, have_size), count = pairs.most_common(1)[0]
    if 2 * count < len(found.misshaped):
        return ""
    size = "wider" if have_size > want_size else "narrower"
    return (
        f"In {count} of them a size is {have_size} where config.json says {want_size}: the weights seem to belong to a "
        f"{size} model; use the config.json that was saved with them"
    )


def _depth(found: Differences) -> str:
    for names, size, has in (
        (found.missing, "shallower", "lack"),
        (found.unexpected, "deeper", "have extra"),
    ):
        blocks = [match for name in names if (match := _BLOCK.match(name))]
        stacks = {match["stack"] for match in blocks}
        other = found.unexpected if names is found.missing else found.missing
        if len(blocks) == len(names) > 1 and len(stacks) == 1 and not other and not found.misshaped:
            numbers = sorted({int(match["number"]) for match in blocks})
            if numbers[0] == 0 or numbers != list(range(numbers[0], numbers[-1] + 1)):
                continue
            which = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
            return (
                f"The weights {has} blocks {which} of {stacks.pop()}: they seem to belong to a {size} model; use the "
                "config.json that was saved with them"
            )
    return ""


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    rest = f", and {len(names) - MOST} more" if len(names) > MOST else ""
    return ", ".join(map(plain, names[:MOST])) + rest


def _shape(shape: Shape) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
