"""`sglang.multimodal_gen.runtime.pipelines_core.stages.base`: one stage of a pipeline."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from enum import Enum, auto
from typing import Any

import torch

from omnimuse.compat.composed.names import no_attribute, no_name
from omnimuse.compat.contract.surroundings import here
from omnimuse.compat.sglang.runtime.pipelines_core.schedule_batch import Req
from omnimuse.compat.sglang.runtime.pipelines_core.stages.validators import VerificationResult
from omnimuse.compat.sglang.runtime.server_args import ServerArgs, get_global_server_args
from omnimuse.core.errors import ModelError

log = logging.getLogger(__name__)


class StageParallelismType(Enum):
    """Where a stage runs. Here every rank runs every stage, and guidance is shared out by the engine."""

    REPLICATED = auto()
    MAIN_RANK_ONLY = auto()
    CFG_PARALLEL = auto()


class StageVerificationError(ModelError):
    """What a stage was given, or gave, is not what it says it must be."""


class PipelineStage(ABC):
    """One stage. Every output has copies of its own of all stages, so a stage may remember things of its request.

    Networks are shared; a scheduler that a stage holds is the output's own.
    """

    def __init__(self) -> None:
        self.server_args = get_global_server_args()

    @property
    def device(self) -> torch.device:
        """The engine's device."""
        return here("PipelineStage.device").device

    @property
    def parallelism_type(self) -> StageParallelismType:
        """Where it runs."""
        return StageParallelismType.REPLICATED

    def verify_input(self, batch: Req, server_args: ServerArgs) -> VerificationResult:
        """What must be true before it."""
        return VerificationResult()

    def verify_output(self, batch: Any, server_args: ServerArgs) -> VerificationResult:
        """What must be true after it."""
        return VerificationResult()

    @abstractmethod
    def forward(self, batch: Req, server_args: ServerArgs) -> Any:
        """Do it: the same `batch` with more in it, or what comes out at the end."""

    def __call__(self, batch: Req, server_args: ServerArgs) -> Any:
        """`forward` between its two checks."""
        self.verified(self.verify_input(batch, server_args), "before")
        made = self.forward(batch, server_args)
        self.verified(self.verify_output(made, server_args), "after")
        return made

    def verified(self, found: VerificationResult, when: str) -> None:
        """StageVerificationError unless everything is as it must be."""
        if not found.is_valid():
            raise StageVerificationError(f"{when} {type(self).__name__}: {found.get_failure_summary()}")

    def log_info(self, msg: str, *args: object) -> None:
        """Tell the log."""
        log.info("[%s] " + msg, type(self).__name__, *args)

    def log_warning(self, msg: str, *args: object) -> None:
        """Tell the log."""
        log.warning("[%s] " + msg, type(self).__name__, *args)

    def log_error(self, msg: str, *args: object) -> None:
        """Tell the log."""
        log.error("[%s] " + msg, type(self).__name__, *args)

    def log_debug(self, msg: str, *args: object) -> None:
        """Tell the log."""
        log.debug("[%s] " + msg, type(self).__name__, *args)

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
