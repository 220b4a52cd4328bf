"""Components of tiny checkpoints in floats of 8 bits, as transformers, ModelOpt and compressed-tensors save them:
`pack(folder, kind)`.

Written here by their layouts, so that tests do not need the libraries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.checkpoints.parts import packable, say_packed, weights_of

POWERS = (torch.float8_e8m0fnu, torch.uint8)
"""Formats of scales that are powers of two."""


@dataclass(frozen=True)
class Layout:
    """What a configuration says of it, how its scales are called, in which format they are, and for how many rows and
    inputs each is (None: all of them).
    """

    said: Mapping[str, Any]
    scale: str = "weight_scale"
    kind: torch.dtype = torch.float32
    block: tuple[int | None, int | None] = (None, None)
    numbers: torch.dtype = torch.float8_e4m3fn
    flat: bool = False
    """Whether a tensor of scales has no dimensions of size 1."""
    inputs: str = ""
    """How what inputs are rounded by is called, where it is in the file."""

    def packed(self, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The tensors of weights [N, K] by the ends of their names, and the floats that these stand for."""
        rows, inputs = (whole or size for whole, size in zip(self.block, weight.shape, strict=True))
        grid = [-(-size // whole) for size, whole in zip(weight.shape, (rows, inputs), strict=True)]
        padded = torch.zeros(grid[0] * rows, grid[1] * inputs)
        padded[: len(weight), : weight.shape[1]] = weight
        blocks = padded.view(grid[0], rows, grid[1], inputs)
        whole = self.numbers == torch.int8
        most = 127 if whole else torch.finfo(self.numbers).max
        scale = blocks.abs().amax((1, 3)).clamp(min=1e-6) / most
        scale = scale.log2().ceil().exp2() if self.kind in POWERS else scale.to(self.kind)
        spread = scale.float()[:, None, :, None]
        codes = (blocks / spread).clamp(-most, most)
        codes = (codes.round() if whole else codes).to(self.numbers)
        floats = (codes.float() * spread).view(padded.shape)[: len(weight), : weight.shape[1]].contiguous()
        kept = codes.view(padded.shape)[: len(weight), : weight.shape[1]].contiguous()
        scale = scale.to(torch.float8_e8m0fnu) if self.kind in POWERS else scale
        scale = scale.view(self.kind) if self.kind == torch.uint8 else scale
        parts = {"weight": kept, self.scale: scale.squeeze() if self.flat else scale}
        return parts | ({self.inputs: torch.tensor(0.01)} if self.inputs else {}), floats


def of_transformers(block: tuple[int, int] | None, scheme: str = "dynamic") -> dict[str, Any]:
    """As Qwen's and DeepSeek's folders have it."""
    return {"quant_method": "fp8", "activation_scheme": scheme, "fmt": "e4m3", "weight_block_size": block}


def of_modelopt(algorithm: str) -> dict[str, Any]:
    """As NVIDIA's folders have it."""
    return {
        "quant_method": "modelopt",
        "quant_algo": algorithm,
        "ignore": ["proj_out"],
        "producer": {"name": "modelopt"},
    }


def of_compressed(form: str, weights: Mapping[str, Any], inputs: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """As folders of vLLM's and Red Hat's have it."""
    group = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "symmetric": True, **weights}}
    groups = {"group_0": {**group, "input_activations": inputs, "output_activations": None}}
    said = {"quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed"}
    return {**said, "config_groups": groups, "ignore": ["lm_head"]}


def inputs(strategy: str, dynamic: bool, kind: str = "float") -> dict[str, Any]:
    """How inputs are rounded, as the last of these says it."""
    return {"num_bits": 8, "type": kind, "symmetric": True, "strategy": strategy, "dynamic": dynamic}


BLOCK = {"strategy": "block", "block_structure": [128, 128]}
GROUP = {"strategy": "group", "group_size": 32}
WHOLE = {"type": "int", "strategy": "channel"}
ROW: tuple[int | None, int | None] = (1, None)
LAYOUTS: Mapping[str, Layout] = {
    "blocks": Layout(of_transformers((128, 128)), "weight_scale_inv", torch.bfloat16, (128, 128)),
    "blocks of 64": Layout(of_transformers((32, 64)), "weight_scale_inv", block=(32, 64)),
    "blocks of 24": Layout(of_transformers((16, 24)), "weight_scale_inv", block=(16, 24)),
    "powers": Layout(of_transformers((128, 128)), "weight_scale_inv", torch.float8_e8m0fnu, (128, 128)),
    "one scale": Layout(of_transformers(None, "static"), "weight_scale_inv", flat=True, inputs="activation_scale"),
    "one scale, rounding": Layout(of_transformers(None), flat=True),
    "modelopt": Layout(of_modelopt("FP8"), flat=True, inputs="input_scale"),
    "modelopt, rows": Layout(of_modelopt("FP8_PER_CHANNEL_PER_TOKEN"), block=ROW, flat=True),
    "modelopt, groups": Layout(of_modelopt("MXFP8"), kind=torch.uint8, block=(1, 32)),
    "compressed": Layout(
        of_compressed("float-quantized", {"strategy": "tensor"}, inputs("tensor", False)), inputs="input_scale"
    ),
    "compressed, rows": Layout(
        of_compressed("float-quantized", {"strategy": "channel"}, inputs("token", True)), kind=torch.bfloat16, block=ROW
    ),
    "compressed, rows alone": Layout(of_compressed("naive-quantized", {"strategy": "channel"}), block=ROW),
    "compressed, blocks": Layout(
        of_compressed("float-quantized", BLOCK, inputs("group", True)), kind=torch.bfloat16, block=(128, 128)
    ),
    "compressed, groups": Layout(of_compressed("naive-quantized", GROUP), block=(1, 32)),
    "compressed, whole numbers": Layout(
        of_compressed("int-quantized", WHOLE, inputs("token", True, "int")), block=ROW, numbers=torch.int8
    ),
    "compressed, whole numbers alone": Layout(of_compressed("naive-quantized", WHOLE), block=ROW, numbers=torch.int8),
}


def pack(folder: Path, kind: str, beside: bool = False) -> dict[str, Tensor]:
    """Pack the weights of blocks in the component `folder`; what they are now, as floats. `beside`: ModelOpt's note
    lies in a file of its own.
    """
    file = weights_of(folder)
    layout, tensors, floats = LAYOUTS[kind], load_file(file), dict[str, Tensor]()
    for name in [name for name, each in tensors.items() if packable(name, each)]:
        parts, floats[name] = layout.packed(tensors.pop(name).float())
        tensors |= {name.removesuffix("weight") + role: part for role, part in parts.items()}
    save_file(tensors, file, {"format": "pt"})
    if beside:
        (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": dict(layout.said)}))
    else:
        say_packed(file, layout.said)
    return floats
