"""What `omnimuse warm` compiled, an engine in another process finds; nothing is compiled twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import omnimuse
from omnimuse.cli.app import parser_of
from omnimuse.cli.warm import run
from omnimuse.core.config import Config, ModelConfig, ParallelConfig
from omnimuse.core.errors import ConfigError, RequestError
from omnimuse.core.loras import Loras
from omnimuse.engine.warm import Warmed, warm
from tests.checkpoints import qwen3
from tests.checkpoints.adapters import layers_of, write
from tests.once import Once

BUNDLED = Path(omnimuse.__file__).parent / "bundled"


def warmed(folder: Path, model: str, *options: str) -> dict[str, object]:
    words = ["warm", model, "--dtype", "float32", "--device", "cpu", "--json", *options]
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


@pytest.mark.costly
@pytest.mark.timeout(600)
def test_what_adapters_are_worn_by_is_compiled_where_one_is_named(tmp_path: Path) -> None:
    """And another one, of another rank, is worn by the same."""
    layers = layers_of(BUNDLED / "shapes")
    one, other = (write(tmp_path / f"{rank}.safetensors", layers, rank=rank) for rank in (4, 3))
    first = warmed(tmp_path / "code", "omnimuse/shapes", "--lora", f"{one}:0.5")
    assert (first["made"], first["found"]) == (4, 0), "two forms as they are, and two with adapters"
    second = warmed(tmp_path / "code", "omnimuse/shapes", "--lora", str(other))
    assert (second["made"], second["found"]) == (0, 4)


def test_an_adapter_that_is_not_there_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"none\.safetensors"):
        run(parser_of("warm").read(["omnimuse/shapes", "--lora", str(tmp_path / "none.safetensors")]), ask=never)


def never(config: Config, loras: Loras | None) -> Warmed:
    raise AssertionError("it is not asked for")


def test_several_ranks_are_not_warmed_in_silence() -> None:
    with pytest.raises(ConfigError, match=r"warming for tensor=2 cannot be: it draws in this process alone"):
        warm(Config(ModelConfig("omnimuse/shapes"), parallel=ParallelConfig(tensor=2)))
