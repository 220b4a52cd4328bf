"""What a start of the bundled model imports: torch and little else.

A library's modelling code takes longer to import than the model takes to draw, so it must stay out of the way.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from omnimuse import DiffusionParams, Omni

with Omni("omnimuse/shapes", dtype="float32", device="cpu") as omni:
    result = omni.generate("a red circle", DiffusionParams(num_inference_steps=1), progress=False)
assert len(result[0].images) == 1
print(*(name for name in sys.argv[1:] if name in sys.modules))
"""

HEAVY = ("diffusers", "transformers", "torch._dynamo", "scipy")
"""The libraries with all that they bring, and torch's compiler (a second)."""


def test_a_picture_of_the_bundled_model_needs_no_library_of_models_and_no_compiler(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *HEAVY, "tokenizers"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["tokenizers"]
