"""Strategy files of another engine: how many ranks and replicas stages have, by what they are called there.

Such a file lies over a deploy file of `stages`, as if that had said it. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omnimuse.core.errors import ConfigError

STRATEGIES = "strategies"
AXES = {
    "tp": "tensor_parallel_size",
    "pp": "pipeline_parallel_size",
    "dp": "data_parallel_size",
    "ep": "enable_expert_parallel",
    "stage_replica": "num_replicas",
}
"""What axes are called there, and what they write into a stage."""
RESERVED = ("sp_ulysses", "sp_ring", "cfg", "vae_pp", "hsdp", "stage_pp", "cp")
"""Axes that have names there, and that it refuses."""
ROUTED = ("stage_replica", "dp")
ROUTING = ("round_robin", "random", "least_queue")
"""To which replica requests go; here it is the one with the least to do, and what comes out is the same."""
ROLES = {"thinker": 0, "ar": 0, "talker": -2, "code2wav": -1, "dit": -1, "diffusion": -1}
"""Which stage is called so where a file does not say: counted from the first, or from the last."""
FIELDS = ("axis", "size", "routing", "l1_owner", "name")


def with_strategy(path: Path, content: Mapping[str, Any], load: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """`content`, a deploy file of `stages`, with what the strategy file at `path` says of them.

    ConfigError for what is no strategy, for a stage that is not there, and where both say other things of one.
    """
    said = load(path).get(STRATEGIES)
    if not isinstance(said, dict) or not all(_is_list(entries) for entries in said.values()):
        raise ConfigError(f"{path} has no `{STRATEGIES}:` with lists of axes; write `thinker: [{{axis: tp, size: 2}}]`")
    stages: Any = content.get("stages")
    if not _is_list(stages):
        raise ConfigError(f"{path}: a strategy is of a file of `stages`; of `pools`, each says its own `parallel`")
    changed = [dict(stage) for stage in stages]
    for role, entries in said.items():
        stage = changed[_number(f"{path}: ", str(role), changed)]
        for entry in entries:
            where = f"{path}: {role}: "
            name, value = _axis(entry, where)
            if stage.get(name, value) != value:
                why = f"axis {entry['axis']} makes {name} {value!r}, and the deploy file says {stage[name]!r}"
                raise ConfigError(f"{where}{why}; leave it out of one of the two")
            stage[name] = value
    return {**content, "stages": changed}


def _axis(entry: Mapping[str, Any], where: str) -> tuple[str, Any]:
    """What an entry writes into its stage: name and value."""
    if unknown := [key for key in entry if key not in FIELDS]:
        raise ConfigError(f"{where}{unknown[0]!r} is not honoured; allowed are {', '.join(FIELDS)}")
    axis, size, routing = (entry.get(key) for key in ("axis", "size", "routing"))
    if axis not in AXES:
        why = "nothing is made of it there either; say it in the deploy file" if axis in RESERVED else "it is none"
        raise ConfigError(f"{where}axis={axis!r} is not allowed: {why}; use one of {', '.join(AXES)}")
    if type(size) is not int or size < 1:
        raise ConfigError(f"{where}size={size!r} of axis {axis} is not allowed; use a whole number, at least 1")
    if routing is not None and (axis not in ROUTED or routing not in ROUTING):
        what = f"use one of {', '.join(ROUTING)}" if axis in ROUTED else f"axis {axis} has no choice; leave it out"
        raise ConfigError(f"{where}routing={routing!r} is not allowed; {what}")
    return AXES[axis], size > 1 if axis == "ep" else size


def _number(where: str, role: str, stages: list[dict[str, Any]]) -> int:
    """The stage that is called so: by the file's own words, or by what such stages are called."""
    own = [stage.get("model_stage") or (stage.get("engine_args") or {}).get("model_stage") for stage in stages]
    if role in own:
        return own.index(role)
    number = ROLES.get(role, len(stages))
    if any(own) or not -len(stages) <= number < len(stages):
        names = ", ".join(str(name) for name in own if name) or ", ".join(ROLES)
        raise ConfigError(f"{where}there is no stage {role!r} among {len(stages)}; names are {names}")
    return number % len(stages)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)
