"""Session fixtures with tiny random checkpoints; `tests/conftest.py` names this module in `pytest_plugins`.

Builders are imported when a fixture is first used, so that tests without checkpoints do not pay for diffusers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def z_image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Z-Image checkpoint (read only: copy it before you change it)."""
    from tests.checkpoints import z_image

    return z_image.build(tmp_path_factory.mktemp("z_image") / "tiny")


@pytest.fixture(scope="session")
def z_image_turbo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the distilled checkpoint's scheduler and folder name, and other weights (read only)."""
    from tests.checkpoints import z_image

    return z_image.build(tmp_path_factory.mktemp("z_image_turbo") / "Z-Image-Turbo", turbo=True, seed=1)


@pytest.fixture(scope="session")
def foreign_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny checkpoint of a pipeline class that no family covers, built when it is first asked for (read only)."""
    from tests.checkpoints.foreign import foreign

    home = tmp_path_factory.mktemp("foreign")

    def folder(arch: str) -> Path:
        return home / arch if (home / arch).exists() else foreign(arch).build(home / arch)

    return folder
