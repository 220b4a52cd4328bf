"""`vllm_omni.diffusion.distributed.parallel_state`: how many ranks share what, and which this one is."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.contract.groups import Group
from omnimuse.compat.contract.names import no_name
from omnimuse.compat.contract.surroundings import axis
from omnimuse.parallel.mesh import BRANCHES, SEQUENCE


def get_classifier_free_guidance_world_size() -> int:
    """How many share the branches of guidance."""
    return axis(BRANCHES, "get_classifier_free_guidance_world_size").size


def get_classifier_free_guidance_rank() -> int:
    """Which of them this is."""
    return axis(BRANCHES, "get_classifier_free_guidance_rank").index


def get_cfg_group() -> Group:
    """They themselves."""
    return Group(axis(BRANCHES, "get_cfg_group"))


def get_sequence_parallel_world_size() -> int:
    """How many share the tokens of a row."""
    return axis(SEQUENCE, "get_sequence_parallel_world_size").size


def get_sequence_parallel_rank() -> int:
    """Which of them this is."""
    return axis(SEQUENCE, "get_sequence_parallel_rank").index


def get_sp_group() -> Group:
    """They themselves."""
    return Group(axis(SEQUENCE, "get_sp_group"))


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
