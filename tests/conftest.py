"""What every test may rely on: no network, no colours, and the tiny checkpoints of `tests/checkpoints`."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["NO_COLOR"] = "1"

pytest_plugins = ["tests.checkpoints.fixtures"]
