"""Every name of SGLang Diffusion's guide, and those that its model files import (`names.toml`)."""

from __future__ import annotations

from pathlib import Path

from omnimuse.compat.tables import names_in

ROOT = "sglang.multimodal_gen"

NAMES = names_in(Path(__file__).with_name("names.toml"))
