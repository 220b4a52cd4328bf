"""`sglang.multimodal_gen.runtime.pipelines_core.stages.validators`: checks of what a stage takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from omnimuse.compat.composed.names import no_name

Check = Callable[[Any], bool]


class VerificationResult:
    """What was checked, and which of it failed."""

    def __init__(self) -> None:
        self._failed: dict[str, list[str]] = {}

    def add_check(self, field_name: str, value: Any, validators: Check | Sequence[Check]) -> VerificationResult:
        """Check `value` by each of `validators`."""
        for check in [validators] if callable(validators) else validators:
            if not check(value):
                named = vars(check).get("__name__", "") if hasattr(check, "__dict__") else ""
                self._failed.setdefault(field_name, []).append(f"{named or check.__qualname__} of {_short(value)}")
        return self

    def is_valid(self) -> bool:
        """Whether nothing failed."""
        return not self._failed

    def get_failed_fields(self) -> list[str]:
        """The names of what failed."""
        return list(self._failed)

    def get_failure_summary(self) -> str:
        """What failed, in words."""
        return "; ".join(f"{name} is not {' and '.join(why)}" for name, why in self._failed.items())


def _short(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)[:80]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class StageValidators:
    """Checks by name: each says of a value whether it is what the name says."""

    not_none: Check = staticmethod(lambda value: value is not None)
    bool_value: Check = staticmethod(lambda value: isinstance(value, bool))
    positive_int: Check = staticmethod(lambda value: _is_number(value) and isinstance(value, int) and value > 0)
    non_negative_int: Check = staticmethod(lambda value: _is_number(value) and isinstance(value, int) and value >= 0)
    none_or_positive_int: Check = staticmethod(lambda value: value is None or StageValidators.positive_int(value))
    positive_float: Check = staticmethod(lambda value: _is_number(value) and value > 0)
    non_negative_float: Check = staticmethod(lambda value: _is_number(value) and value >= 0)
    string_not_none: Check = staticmethod(lambda value: isinstance(value, str) and value != "")
    string_or_list_strings: Check = staticmethod(
        lambda value: isinstance(value, str) or (isinstance(value, list) and all(isinstance(v, str) for v in value))
    )
    is_list: Check = staticmethod(lambda value: isinstance(value, list))
    is_tuple: Check = staticmethod(lambda value: isinstance(value, tuple))
    none_or_list: Check = staticmethod(lambda value: value is None or isinstance(value, list))
    list_not_empty: Check = staticmethod(lambda value: isinstance(value, list) and len(value) > 0)
    is_tensor: Check = staticmethod(lambda value: isinstance(value, Tensor))
    none_or_tensor: Check = staticmethod(lambda value: value is None or isinstance(value, Tensor))
    list_of_tensors: Check = staticmethod(
        lambda value: isinstance(value, list) and len(value) > 0 and all(isinstance(v, Tensor) for v in value)
    )
    generator_or_list_generators: Check = staticmethod(
        lambda value: all(isinstance(v, torch.Generator) for v in (value if isinstance(value, list) else [value]))
    )

    @staticmethod
    def with_dims(dims: int) -> Check:
        """A tensor of so many dimensions."""
        return lambda value: isinstance(value, Tensor) and value.ndim == dims

    @staticmethod
    def min_dims(dims: int) -> Check:
        """A tensor of at least so many."""
        return lambda value: isinstance(value, Tensor) and value.ndim >= dims

    @staticmethod
    def positive_int_divisible(divisor: int) -> Check:
        """A multiple of `divisor`."""
        return lambda value: bool(StageValidators.positive_int(value)) and value % divisor == 0

    @staticmethod
    def divisible(divisor: int) -> Check:
        """The same."""
        return StageValidators.positive_int_divisible(divisor)

    @staticmethod
    def list_of_tensors_min_dims(dims: int) -> Check:
        """A list of tensors, each of at least so many dimensions."""
        return lambda value: bool(StageValidators.list_of_tensors(value)) and all(v.ndim >= dims for v in value)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
