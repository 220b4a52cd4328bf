"""TEMPORARY placeholder by the lead; overwrite freely."""
from __future__ import annotations
from dataclasses import dataclass
from typing import Any
@dataclass(frozen=True)
class Axis:
    size: int = 1
    index: int = 0
    group: Any = None
@dataclass(frozen=True)
class Mesh:
    rank: int = 0
    size: int = 1
    @staticmethod
    def single() -> "Mesh": return Mesh()
    @staticmethod
    def from_process_group(cfg: int) -> "Mesh": raise NotImplementedError
    def axis(self, name: str) -> Axis: return Axis()
