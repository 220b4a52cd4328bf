"""What `omnimuse warm` compiled, an engine in another process finds; nothing is compiled twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from omnimuse.core.config import Config, ModelConfig, ParallelConfig
from omnimuse.core.errors import ConfigError
from omnimuse.engine.warm import warm
from tests.checkpoints import qwen3
from tests.once import Once


def warmed(folder: Path, model: str) -> dict[str, object]:
    words = ["warm", model, "--dtype", "float32", "--device", "cpu", "--json"]
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-m", "omnimuse", *words], env=env, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.costly
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("writes", "forms"), [(False, 2), (True, 8)], ids=["draws", "writes"])
def test_a_warmed_model_is_compiled_for_one_row_and_for_several_and_never_again(
    writes: bool, forms: int, once: Once, tmp_path: Path
) -> None:
    """What writes has two pieces, each for one token and for more of them."""
    model = str(once.folder("qwen3", qwen3.build)) if writes else "omnimuse/shapes"
    first = warmed(tmp_path, model)
    assert (first["made"], first["found"]) == (forms, 0)
    assert Path(str(first["folder"])).parent == tmp_path
    second = warmed(tmp_path, model)
    assert (second["made"], second["found"]) == (0, forms)


def test_several_ranks_are_not_warmed_in_silence() -> None:
    with pytest.raises(ConfigError, match=r"warming for tensor=2 cannot be: it draws in this process alone"):
        warm(Config(ModelConfig("omnimuse/shapes"), parallel=ParallelConfig(tensor=2)))
