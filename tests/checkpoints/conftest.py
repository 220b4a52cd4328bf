"""The checkpoint fixtures, for the tests of the builders themselves."""

from __future__ import annotations

from tests.checkpoints.fixtures import z_image_folder  # noqa: F401  a fixture
