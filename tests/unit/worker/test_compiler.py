"""Compiled code is kept apart for every kind of processor, so that no engine takes what was made for another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from omnimuse.core.machine import processor
from omnimuse.worker.compiler import kind

PROGRAM = """
import torch
from torch._inductor.runtime.cache_dir_utils import cache_dir
from omnimuse.core.config import CompileConfig, Config, ModelConfig
from omnimuse.parallel.mesh import Mesh
from omnimuse.worker.build import build

config = Config(ModelConfig("omnimuse/shapes", dtype="float32", device="cpu"), compile=CompileConfig("blocks"))
for _ in range(2):
    build(config, Mesh.single()).resources.close()
print(torch.backends.cpu.get_cpu_capability(), cache_dir())
"""


def where(**environment: str) -> tuple[str, Path]:
    """The instructions that torch uses in such an environment, and where an engine there keeps compiled code."""
    env = {**os.environ, **environment}
    env = {name: value for name, value in env.items() if value}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    capability, folder = done.stdout.strip().splitlines()[-1].split(" ")
    return capability, Path(folder)


@pytest.mark.costly
@pytest.mark.timeout(300)
def test_other_instructions_over_the_same_cache_have_another_folder(tmp_path: Path) -> None:
    chosen = str(tmp_path / "cache")
    capability, plain = where(TORCHINDUCTOR_CACHE_DIR=chosen, ATEN_CPU_CAPABILITY="default")
    assert (capability, plain.parent) == ("DEFAULT", tmp_path / "cache")
    usual, own = where(TORCHINDUCTOR_CACHE_DIR=chosen, ATEN_CPU_CAPABILITY="")
    assert (own.parent, own.name) == (tmp_path / "cache", kind(capability=usual))
    assert (own == plain) == (usual == "DEFAULT")


def test_every_part_of_what_code_depends_on_makes_another_kind() -> None:
    found = {
        kind(of, capability, version)
        for of in ("Xeon, avx2", "Xeon, avx2 avx512f")
        for capability in ("AVX2", "AVX512")
        for version in ("2.9.0", "2.9.1")
    }
    assert len(found) == 8
    assert kind() == kind(processor(), torch.backends.cpu.get_cpu_capability(), torch.__version__)
