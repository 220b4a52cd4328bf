"""The check of published model files: copies whose imports lead to the door, and what it says of each."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from omnimuse.compat.contract.surroundings import Surroundings, within
from omnimuse.compat.vllm_omni.diffusion.data import OmniDiffusionConfig, TransformerConfig
from omnimuse.parallel.mesh import Mesh
from tools import compat_check
from tools.compat_trace import parting, traced

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
        "from vllm_omni.diffusion.models.own.net import Net\n"
        "class OwnPipeline(SupportImageInput):\n"
        "    def __init__(self):\n"
        "        self.transformer = Net(layers=3)\n"
    ),
    "vllm_omni/diffusion/models/own/net.py": (
        "class Net:\n    def __init__(self, width=4096, layers=60):\n        self.sizes = width, layers\n"
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
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = compat_check.borrow(wheel, tmp_path / "place")
    assert tables["_DIFFUSION_POST_PROCESS_FUNCS"] == {"OwnPipeline": "after"}
    monkeypatch.syspath_prepend(tmp_path / "place")
    try:
        said = {arch: compat_check.imported(*row) for arch, row in tables["_DIFFUSION_MODELS"].items()}  # type: ignore[misc]
        own = sys.modules["borrowed.own.pipeline_own"]
        told = OmniDiffusionConfig(model="m", model_class_name="Own", dtype=torch.float32)
        told.tf_model_config = TransformerConfig({"width": 8, "layers": 1, "other": 2})
        with within(Surroundings(torch.device("cpu"), torch.float32, Mesh.single(), told)):
            network = own.OwnPipeline().transformer
    finally:
        for name in [each for each in sys.modules if each.partition(".")[0] == "borrowed"]:
            del sys.modules[name]
    assert own.HERE == 1
    assert (network.sizes, type(network).__name__) == ((8, 3), "Net")  # what was not told is the checkpoint's
    assert own.SupportImageInput.__module__ == "omnimuse.compat.vllm_omni.diffusion.models.interface"
    assert said["OwnPipeline"] == ""
    assert "there is no vllm_omni.diffusion.nowhere here" in said["LostPipeline"]
    assert said["BarePipeline"] == "there is no Bare"


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


def test_a_process_of_its_own_tells_how_far_a_pipeline_comes_and_how_it_ended(wheel: Path, tmp_path: Path) -> None:
    compat_check.borrow(wheel, tmp_path, ["OwnPipeline"])
    assert compat_check.tried(tmp_path, ("own", "pipeline_own", "OwnPipeline"), None) == {"imports": "yes"}
    ends = {
        "import os, signal\nos.kill(os.getpid(), signal.SIGXCPU)\n": f"it took more than {compat_check.LONGEST} s",
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n": "it was ended by SIGKILL",
        "raise SystemExit('first at its end')\n": "first at its end",
    }
    for number, (text, why) in enumerate(ends.items()):
        (tmp_path / "borrowed" / "own" / f"pipeline_ending{number}.py").write_text(text)
        assert compat_check.tried(tmp_path, ("own", f"pipeline_ending{number}", "Ending"), None) == {"imports": why}


def test_outputs_agree_by_their_numbers_or_by_the_levels_of_8_bits() -> None:
    exact = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    levels = (exact * 255).round() / 255
    near = (exact + 5e-5).clamp(max=1)
    assert compat_check.parted(near, exact) == compat_check.parted(levels, near) == ""
    assert compat_check.parted(exact, exact[:, :32]) == "shapes (3, 64, 64) and (3, 32, 64)"
    assert compat_check.parted(exact + 1e-3, exact).startswith("by up to 0.001")
    assert compat_check.parted(levels, exact + 1e-3).endswith("on average")
    assert compat_check.parted(exact + 1e-3, exact, 2e-3) == ""


class Net(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.first, self.second = nn.Identity(), nn.ReLU()
        self.factor = factor

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.second(self.first(x) * self.factor),)


def test_the_first_module_that_parts_is_named() -> None:
    runs = []
    for factor in (1.0, 1.5):
        with traced("Net") as seen:
            Net(factor)(torch.ones(2))
        runs.append(seen)
    assert list(runs[0]) == ["Net.first", "Net.second", "Net, call 1"]
    assert parting(runs[1], runs[0]) == "first at Net.second, by 0.5 of its largest number"
    assert parting(runs[0], runs[0]) == ""
    with traced("Net") as later:
        nn.Identity()(torch.ones(1))
    assert later == {}


def test_it_goes_on_from_what_was_kept_and_prints_the_table_of_the_page(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    agreeing = {"imports": "yes", "builds": "yes", "draws": "yes", "agrees": "yes, but for a trifle"}
    kept = {
        "OwnPipeline": agreeing,
        "LostPipeline": {"imports": "no"},
        "BarePipeline": {**agreeing, "agrees": "differs"},
    }
    (tmp_path / "kept").write_text("".join(f"{json.dumps(row)}\n" for row in kept.items()))
    monkeypatch.setattr(sys, "argv", ["compat_check", str(wheel), "--kept", str(tmp_path / "kept")])
    compat_check.main()
    assert capsys.readouterr().out.splitlines() == [
        *("imports: 2 of 3", "builds: 2 of 3", "draws: 2 of 3", "agrees: 1 of 3", ""),
        "| pipeline | agrees | what it was asked otherwise |",
        "|---|---|---|",
        *("| `OwnPipeline` | yes | |", "| `BarePipeline` | differs | |"),
    ]


def test_the_page_tells_of_every_pipeline_that_is_asked_otherwise_as_the_check_prints_it() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "compat.md").read_text(encoding="utf-8")
    shown = [line for line in page.splitlines() if line.startswith("| `") and "Pipeline` | yes |" in line]
    named = [line.split("`")[1] for line in shown]
    assert set(named) >= compat_check.KNOWN.keys()
    assert shown == compat_check.table([(name, {"agrees": "yes"}) for name in named]).splitlines()[2:]
