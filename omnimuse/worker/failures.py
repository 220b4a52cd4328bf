"""What a failure becomes: one of our errors, free of the frames it passed through.

The runner calls it for whatever a stage, a network or a transfer raises. A traceback keeps every local variable alive,
and those of a failed forward are all its activations; so it is kept as text, as a note of the error.
"""

from __future__ import annotations

import gc
import traceback

import torch

from omnimuse.core.errors import (
    FULL,
    EngineDeadError,
    MemoryShortageError,
    ModelError,
    OmnimuseError,
    StorageError,
    reason,
)
from omnimuse.parallel.shortage import is_shortage
from omnimuse.worker.allocator import give_back

_FIGURES = ("Tried to allocate", "GPU ")  # sentences of torch's with what was wanted and what there is
_BROKEN = ("CUDA error", "HIP error", "NCCL error")  # what torch says where it has no class of its own for it


def settle(error: Exception, where: str) -> OmnimuseError:
    """`error`, raised in `where`, as one of our errors that holds no frames and no causes.

    Raises EngineDeadError for what leaves nothing to go on with: a broken device, or ranks that cannot talk any more.
    Call it outside the `except` that caught `error`, which would keep the frames.
    """
    text = "".join(traceback.format_exception(error))
    if isinstance(error, EngineDeadError):
        raise error
    if _is_broken(error):
        raise EngineDeadError(f"{where}: the device cannot go on ({error}); start a new engine")
    found: OmnimuseError
    if isinstance(error, OmnimuseError):
        found = error
    elif full := _full_disk(error):
        kept = "code that is compiled is kept in the folder of TORCHINDUCTOR_CACHE_DIR"
        found = StorageError(f"{where} failed as a disk has no room: {reason(full)}; free some space ({kept})")
    elif is_shortage(error):
        found = MemoryShortageError(f"{where} ran out of memory: {_figures(str(error))}")
    else:
        found = ModelError(f"{where} failed with {type(error).__name__}: {error}")
    _let_go(error)
    if found is not error:
        found.add_note(text)
    return found


def _figures(message: str) -> str:
    """What torch says of a shortage, shortened to its first sentence and those with figures of it."""
    first, *others = message.split(". ")
    return ". ".join([first, *(sentence for sentence in others if sentence.startswith(_FIGURES))])


def _full_disk(error: BaseException | None) -> OSError | None:
    """What a disk without room said, where that led to `error`: the compiler writes what it makes, and wraps it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return error
        error = error.__cause__ or error.__context__
    return None


def free_memory(device: torch.device) -> None:
    """Give the system back what nobody uses any more, here and on the `device`, so that a second try finds it."""
    gc.collect()
    give_back()
    if device.type != "cpu":
        torch.accelerator.empty_cache()


def _is_broken(error: Exception) -> bool:
    if is_shortage(error):
        return False
    return isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _BROKEN)
    )


def _let_go(error: BaseException) -> None:
    """Empty the frames of `error` and of whatever caused it."""
    while True:
        traceback.clear_frames(error.__traceback__)
        cause = error.__cause__ or error.__context__
        error.__traceback__ = error.__cause__ = error.__context__ = None
        if cause is None:
            return
        error = cause
