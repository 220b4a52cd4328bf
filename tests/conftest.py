"""What every test may rely on: no network, no colours, one torch thread unless a test asks for more."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["NO_COLOR"] = "1"
