"""Session fixtures with tiny random checkpoints; `tests/conftest.py` names this module in `pytest_plugins`.

Builders are imported when a fixture is first used, so that tests without checkpoints do not pay for diffusers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.once import Once

if TYPE_CHECKING:
    from tests.checkpoints.wishes import Answerer, Speaker, Writer


@pytest.fixture(scope="session")
def tiny(once: Once) -> Callable[[str], Path]:
    """The tiny checkpoint of a family, by the family's name (read only: copy it before you change it)."""

    def folder(name: str) -> Path:
        from tests.checkpoints.families import DRAWING

        [family] = [family for family in DRAWING if family.name == name]
        return once.folder(name, family.build)

    return folder


@pytest.fixture(scope="session")
def z_image_folder(once: Once) -> Path:
    """A tiny random Z-Image checkpoint (read only: copy it before you change it)."""
    from tests.checkpoints import z_image

    return once.folder("ZImagePipeline", z_image.build)


@pytest.fixture(scope="session")
def foreign_folder(once: Once) -> Callable[[str], Path]:
    """The tiny checkpoint of a pipeline class that no family covers, built when it is first asked for (read only)."""

    def folder(arch: str) -> Path:
        from tests.checkpoints.foreign import foreign

        return once.folder(arch, foreign(arch).build)

    return folder


def folder_of_each(tellers: Sequence[Writer | Speaker | Answerer]) -> Any:
    """A fixture for a module's `folder`: the tiny checkpoint of each of these, one after the other (read only)."""

    @pytest.fixture(scope="module", params=tellers, ids=lambda teller: teller.name)
    def folder(request: pytest.FixtureRequest, once: Once) -> Path:
        return once.folder(request.param.name, request.param.build)

    return folder
