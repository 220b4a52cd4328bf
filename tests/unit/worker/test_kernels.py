"""Fused kernels are chosen where they can run, refused with the reason where they cannot, and given to every part."""

import pytest
import torch
from torch import nn

from omnimuse.api import explain
from omnimuse.core.config import CompileConfig, Config, KernelConfig, ModelConfig
from omnimuse.core.errors import ConfigError
from omnimuse.layers.kernels import GatedSum, Plain
from omnimuse.layers.norm import ModulatedNorm, QueryKeyNorm, RMSNorm
from omnimuse.worker.kernels import choose_kernels, give_kernels, obstacle

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def config(mode: str = "auto", compiled: str = "none") -> Config:
    return Config(ModelConfig("toy"), compile=CompileConfig(compiled), kernels=KernelConfig(mode))


def test_a_cpu_has_plain_kernels_and_is_told_why():
    kernels, choice = choose_kernels(config(), CPU)
    assert (kernels.name, choice.value) == ("plain", "plain")
    assert choice.reason == "default, not triton: Triton compiles for CUDA, and this computes on cpu"
    assert choose_kernels(config("plain"), CPU)[1].reason.startswith("asked for")


def test_fused_kernels_that_cannot_run_are_refused_with_the_reason():
    with pytest.raises(ConfigError, match="kernels=triton cannot be: Triton compiles for CUDA, and"):
        choose_kernels(config("triton"), CPU)
    with pytest.raises(ConfigError, match="kernels='fast' is not allowed; use one of auto, plain, triton"):
        KernelConfig("fast")


def test_compiled_blocks_keep_plain_kernels_on_every_device():
    assert "fused by the compiler" in (obstacle(config(compiled="blocks"), CUDA) or "")


def test_every_part_gets_the_kernels_wherever_it_is():
    network = nn.ModuleDict(
        {
            "deep": nn.Sequential(nn.Linear(2, 2), RMSNorm(2, 1e-6)),
            "sum": GatedSum(),
            "norm": ModulatedNorm(1e-6),
            "heads": QueryKeyNorm(2, 1e-6, rounds_once=True),
        }
    )
    chosen = Plain()
    assert give_kernels(network, chosen) == 4
    parts = [network["deep"][1], network["sum"], network["norm"], network["heads"]]
    assert all(part.kernels is chosen for part in parts)


def test_explain_says_which_kernels_compute_how_many_parts():
    [choice] = [c for c in explain("omnimuse/shapes", device="cpu") if c.name == "kernels"]
    assert choice.value == "plain" and "parts of transformer" in choice.reason
