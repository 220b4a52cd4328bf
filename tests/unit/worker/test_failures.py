"""What a failure becomes: errors of ours that say what to do."""

from __future__ import annotations

import errno
import os

from torch._inductor.exc import InductorError

from omnimuse.core.errors import ModelError, StorageError
from omnimuse.worker.failures import settle


def compiled(refused: OSError) -> Exception:
    """What torch's compiler raises where it could not write what it made."""
    try:
        try:
            raise refused
        except OSError as inner:
            raise InductorError(inner, None) from None
    except InductorError as error:
        return error


def test_a_disk_that_is_full_while_blocks_are_compiled_is_no_fault_of_the_model() -> None:
    found = settle(compiled(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))), "transformer")
    assert isinstance(found, StorageError)
    assert str(found).startswith("transformer failed as a disk has no room: No space left on device; free some space")
    assert "TORCHINDUCTOR_CACHE_DIR" in str(found)


def test_any_other_refusal_of_the_system_is_told_as_it_is() -> None:
    found = settle(compiled(OSError(errno.EACCES, os.strerror(errno.EACCES))), "transformer")
    assert isinstance(found, ModelError) and "Permission denied" in str(found)
