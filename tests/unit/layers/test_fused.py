"""The fused kernels without a GPU: run by Triton's interpreter, and compiled for GPUs that are not here."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs triton, which `.[test]` installs on Linux")


@pytest.mark.costly
def test_the_interpreter_computes_what_the_plain_kernels_compute() -> None:
    """In a process of its own: Triton asks for its interpreter when kernels are defined."""
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu/test_fused_kernels.py"]
    found = subprocess.run(
        tests, cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
    assert set(found.stdout.split()[0]) == {"."}, found.stdout[-300:]  # all of them passed, none was skipped


@pytest.mark.costly
@pytest.mark.parametrize("capability", [80, 90])
def test_every_kernel_compiles_for_a_gpu_that_is_not_here_and_reads_16_bytes_at_a_time(
    capability: int, tmp_path: Path
) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "tests.gpu.ahead_of_time", str(capability)],
        cwd=ROOT,
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    lines = [line.split() for line in found.stdout.splitlines()]
    assert [name for name, *_ in lines] == [*["_norm"] * 4, "_add", "_gated", "_beside", *["_turn"] * 3]
    assert all(int(size) > 0 and int(wide) > 0 for _, size, wide in lines), lines
