"""How much memory of its own a process takes to load a model and to run it, measured in a process that does only that.

Weights that wait in files, and pages of the checkpoint, are memory that the system can have back at any time; what
counts here is the rest (`RssAnon` in /proc).
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.checkpoints import parts, z_image

MEASURE = """
import ctypes, gc, json, sys, threading
from pathlib import Path
import torch
from omnimuse import Config, DiffusionParams, ModelConfig
from omnimuse.core.config import OffloadConfig, QuantConfig
from omnimuse.core.request import Ask
from omnimuse.engine.local import start
from omnimuse.layers.steady import SteadyLinear, steady_heights
from omnimuse.loader.tensors import stored_tensors
from omnimuse.worker.steady import tried

products = set()

def own():
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) * 1024

class Watch:
    def __enter__(self):
        self.peak, self.done = own(), threading.Event()
        self.thread = threading.Thread(target=self.look)
        self.thread.start()
        return self
    def look(self):
        while not self.done.wait(0.002):
            self.peak = max(self.peak, own())
    def __exit__(self, *error):
        self.done.set()
        self.thread.join()
        self.peak = max(self.peak, own())

def sizes(engine):
    components = engine.runner.pipeline.ctx.components
    modules = {name: components.wherever(name) for name in components if name != "tokenizer"}
    stored = {name: [t.nbytes for t, _ in stored_tensors(m).values()] for name, m in modules.items()}
    blocks = [b for stack in modules["transformer"].stacks().values() for b in stack.blocks()]
    inside = [sum(t.nbytes for t, _ in stored_tensors(b).values()) for b in blocks]
    return {
        "whole": sum(map(sum, stored.values())), "tensor": max(map(max, stored.values())), "block": max(inside),
        "component": max(map(sum, stored.values())), "rest": sum(stored["transformer"]) - sum(inside),
        "others": max(sum(sizes) for name, sizes in stored.items() if name != "transformer"),
    }

def run(folder, mode, dtype, files, quantize=""):
    for outputs, inputs, bias in products:  # a library keeps its kernels, for bfloat16 half a megabyte for each height
        numbers = torch.zeros(outputs, inputs + bias, dtype=getattr(torch, dtype))
        steady_heights(numbers[:, :inputs].contiguous(), numbers[:, -1].contiguous() if bias else None)
    tried.cache_clear()  # as in the first engine of a process
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before counts neither way
    before = own()
    offload = OffloadConfig() if mode == "none" else OffloadConfig(mode, Path(files))
    with Watch() as loading:
        model = ModelConfig(folder, dtype=dtype, device="cpu")
        engine = start(Config(model, offload=offload, quantize=QuantConfig.of(quantize)))
    with Watch() as running:
        params = DiffusionParams(height=64, width=64, num_inference_steps=3, seed=1, guidance_scale=2.0)
        engine.submit(engine.make_request(Ask("a circle", params)))
        while not engine.idle:
            engine.tick()
    found = sizes(engine)
    parts = engine.runner.pipeline.ctx.components.wherever("transformer").modules()
    products.update((*part.weight.shape, part.bias is not None) for part in parts if isinstance(part, SteadyLinear))
    engine.close()
    peaks = {"loading": loading.peak - before, "running": running.peak - before}
    return {"mode": quantize or mode, "dtype": dtype, **peaks, **found}

tiny, large, files = sys.argv[1:]
ways = (
    ("layers", "float32", files),
    ("components", "float32", files),
    ("none", "bfloat16", files),
    ("none", "float32", files, "int8"),
)
for how in ways:
    run(tiny, *how)  # everything is imported, every thread has its memory
run(large, *ways[0])  # the library has its kernels, for products of these sizes too
print(json.dumps([[run(tiny, *how), run(large, *how)] for how in ways]))
"""
PACKED = 2**20  # bytes: some matrix libraries put what they multiply into an order of their own meanwhile
SLACK = 48e6  # bytes: activations, and what an allocator holds on to while a request runs


@dataclass(frozen=True)
class Measured:
    """Bytes: a process's own memory at its most, less what it had before, and sizes of the model.

    `besides` is what loading a tiny model takes in the same way and process: what is of no weights.
    """

    mode: str
    dtype: str
    loading: int
    running: int
    whole: int
    component: int
    others: int
    rest: int
    block: int
    tensor: int
    besides: int


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Measured]:
    from diffusers import ZImageTransformer2DModel

    folder = tmp_path_factory.mktemp("memory")
    tiny, large, files = z_image.build(folder / "tiny"), z_image.build(folder / "large"), folder / "files"

    def transformer() -> ZImageTransformer2DModel:
        return ZImageTransformer2DModel(
            dim=768, n_layers=8, n_refiner_layers=1, n_heads=6, n_kv_heads=6, cap_feat_dim=z_image.TEXT_WIDTH,
            axes_dims=[32, 48, 48], axes_lens=[1024, 512, 512],
        )  # fmt: skip

    parts.save_module(large, "transformer", 0, transformer)
    command = [sys.executable, "-c", MEASURE, str(tiny), str(large), str(files)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    runs = [Measured(**run, besides=tiny["loading"]) for tiny, run in json.loads(done.stdout)]
    return {run.mode: run for run in runs}


pytestmark = [
    pytest.mark.costly("memory"),
    pytest.mark.timeout(600),
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell"),
    pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what was freed cannot be told from what is used"),
]


def test_loading_takes_what_stays_and_one_tensor_even_where_weights_are_fused_and_converted(
    measured: dict[str, Measured],
) -> None:
    run = measured["none"]
    assert run.whole > 120e6
    assert run.besides < run.whole / 8, "a tiny model's weights are a part of it"
    assert 0.9 * run.whole < run.loading < run.whole + run.tensor + run.besides, "the first: the measure sees weights"


@pytest.mark.parametrize("mode", ["components", "layers"])
def test_weights_that_wait_are_never_the_process_s_own(measured: dict[str, Measured], mode: str) -> None:
    run = measured[mode]
    assert run.whole > 240e6
    assert run.loading < run.tensor + run.besides + PACKED < run.whole / 10


def test_with_components_offloaded_the_largest_of_them_is_held(measured: dict[str, Measured]) -> None:
    run = measured["components"]
    assert 0.9 * run.component < run.running < run.component + SLACK


def test_with_layers_offloaded_one_block_and_the_rest_are_held(measured: dict[str, Measured]) -> None:
    run = measured["layers"]
    assert run.running < run.block + run.rest + run.others + SLACK < run.whole / 2


def test_packing_takes_what_stays_and_one_tensor_never_the_whole_weights(measured: dict[str, Measured]) -> None:
    run, unpacked = measured["int8"], measured["layers"]
    assert run.whole < unpacked.whole / 3
    assert 0.9 * run.whole < run.loading < run.whole + unpacked.tensor + run.besides < unpacked.whole * 0.4
