"""Every name of vLLM-Omni's contract that its documents have, or that published model files import (`names.toml`).

The documents are the guide in its newer and its older version, the skill, and the study of the code.
"""

from __future__ import annotations

from pathlib import Path

from omnimuse.compat.tables import names_in

NAMES = names_in(Path(__file__).with_name("names.toml"))
