"""The check of published model files: copies whose imports lead to the door, and what it says of each."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import pytest

from tools import compat_check

FILES = {
    "vllm_omni/diffusion/registry.py": (
        '_DIFFUSION_MODELS = {"OwnPipeline": ("own", "pipeline_own", "OwnPipeline"), '
        '"LostPipeline": ("own", "pipeline_lost", "LostPipeline"), "BarePipeline": ("own", "pipeline_own", "Bare")}\n'
        '_DIFFUSION_POST_PROCESS_FUNCS = {"OwnPipeline": "after"}\n'
    ),
    "vllm_omni/diffusion/models/__init__.py": "",
    "vllm_omni/diffusion/models/own/__init__.py": "",
    "vllm_omni/diffusion/models/own/beside.py": "HERE = 1\n",
    "vllm_omni/diffusion/models/own/pipeline_own.py": (
        "from vllm.logger import init_logger\n"
        "from vllm_omni.diffusion.models.interface import SupportImageInput\n"
        "from vllm_omni.diffusion.models.own.beside import HERE\n"
        "class OwnPipeline(SupportImageInput):\n    pass\n"
    ),
    "vllm_omni/diffusion/models/own/pipeline_lost.py": "from vllm_omni.diffusion.nowhere import Thing\n",
}


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "own.whl"
    with zipfile.ZipFile(path, "w") as made:
        for name, text in FILES.items():
            made.writestr(name, text)
    return path


def test_what_is_borrowed_imports_through_the_door_or_says_why_not(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = compat_check.borrow(wheel, tmp_path / "place")
    assert tables["_DIFFUSION_POST_PROCESS_FUNCS"] == {"OwnPipeline": "after"}
    monkeypatch.syspath_prepend(tmp_path / "place")
    try:
        compat_check.imports(tables["_DIFFUSION_MODELS"])  # type: ignore[arg-type]
        own = sys.modules["borrowed.own.pipeline_own"]
    finally:
        for name in [each for each in sys.modules if each.partition(".")[0] == "borrowed"]:
            del sys.modules[name]
    assert own.HERE == 1
    assert own.SupportImageInput.__module__ == "omnimuse.compat.vllm_omni.diffusion.models.interface"
    told = {line["arch"]: line["imports"] for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert told["OwnPipeline"] == ""
    assert "there is no vllm_omni.diffusion.nowhere here" in told["LostPipeline"]
    assert told["BarePipeline"] == "there is no Bare"


def test_a_folder_is_borrowed_alike_and_one_without_a_registry_is_refused(tmp_path: Path) -> None:
    for name, text in FILES.items():
        path = tmp_path / "unpacked" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    compat_check.borrow(tmp_path / "unpacked", tmp_path / "place")
    made = (tmp_path / "place" / "borrowed" / "own" / "pipeline_own.py").read_text()
    assert "from borrowed.own.beside import HERE" in made
    with pytest.raises(SystemExit, match="name a wheel of vLLM-Omni"):
        compat_check.borrow(tmp_path / "place", tmp_path / "other")
