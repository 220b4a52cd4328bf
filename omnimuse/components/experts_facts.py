"""What config.json says of layers of experts (`experts.py`). No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omnimuse.core.errors import ModelError
from omnimuse.loader.facts import known_of, read_facts


@dataclass(frozen=True)
class ExpertsFacts:
    """Of the experts of a layer: how many there are, how many a token asks, whether what these say weighs 1 in all."""

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    norm_topk_prob: bool = True


def experts_of(given: Mapping[str, Any], where: str) -> ExpertsFacts:
    """The experts of a decoder; how many there are, transformers calls otherwise in some parts."""
    given = {"num_experts": given.get("num_local_experts"), **given}
    found = read_facts(ExpertsFacts, known_of(given, ExpertsFacts, ()), f"config.json, {where}", {})
    if not 1 <= found.num_experts_per_tok <= found.num_experts:
        raise ModelError(
            f"config.json, {where}: num_experts_per_tok={found.num_experts_per_tok} of {found.num_experts} experts "
            "cannot be; use a complete checkpoint"
        )
    return found
