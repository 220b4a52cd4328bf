"""What a configuration says of weights of 8 bits that have scales beside them: whose layout it is, and which.

transformers writes such folders (`quant_method` fp8, as DeepSeek and Qwen do), NVIDIA's ModelOpt and compressed-tensors
do. The tensors are read in `scaled.py`; no torch here. Sources: `FineGrainedFP8Config` of transformers, `export` of
ModelOpt, `QuantizationConfig` of compressed-tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from omnimuse.core.errors import ModelError
from omnimuse.core.layouts import laid_out
from omnimuse.loader.files import read_json

CONFIG = "config.json"
SAID = "quantization_config"
"""Where a configuration says how weights were packed."""
BESIDE = "hf_quant_config.json"
"""Where ModelOpt says it as well, and said nowhere else once."""


@dataclass(frozen=True)
class EightBits:
    """Who packed weights, how many rows and inputs have one scale (None: all of them, or those of each row), and
    whether inputs are rounded as well, each token by itself.
    """

    library: str
    block: tuple[int, int] | None = None
    rounds: bool = False


def with_note(folder: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """`config`, which lies in `folder`, with what another file there says of how its weights were packed."""
    if SAID in config or not (folder / BESIDE).is_file():
        return config
    said = read_json(folder / BESIDE).get("quantization")
    return {**config, SAID: {**said, "quant_method": "modelopt"}} if isinstance(said, Mapping) else config


def eight_bits(said: Any) -> EightBits | None:
    """What it says, if it is of one of `METHODS`; ModelError with what of it is not read, in a few words."""
    method = str(said.get("quant_method")) if isinstance(said, Mapping) else ""
    if method not in METHODS:
        return None
    try:
        return METHODS[method](said)
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ModelError(f"{method} in a way that its {SAID} does not tell ({type(problem).__name__})") from None


def in_eight_bits(folder: Path) -> EightBits | None:
    """What the configurations in `folder` say; None where that is nothing, or nothing that is read."""
    try:
        every = [config.get(SAID) for config in _configurations(folder)]
        return next((found for said in every if (found := eight_bits(said)) is not None), None)
    except ModelError:
        return None


def _configurations(folder: Path) -> Iterator[Mapping[str, Any]]:
    """That in config.json, and those beside it of which a layout makes up one."""
    yield with_note(folder, read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {})
    files = laid_out([path.name for path in folder.iterdir()])
    names = [name for piece in files.pieces.values() for name in piece.files] if files else []
    for name in names:
        if name != CONFIG and (folder / name).is_file():
            yield read_json(folder / name)


def _of_transformers(said: Mapping[str, Any]) -> EightBits:
    """`activation_scheme` dynamic: inputs are rounded, in groups as wide as a block."""
    for key, read in (("fmt", "e4m3"), ("expert_dtype", "fp8")):
        if said.get(key, read) != read:
            raise ModelError(f"fp8 with {key}={said[key]!r}")
    block = said.get("weight_block_size")
    dynamic = said.get("activation_scheme", "dynamic") == "dynamic"
    return EightBits("fp8", None if block is None else _block(block), dynamic and block is None)


ALGORITHMS: Mapping[str, EightBits] = MappingProxyType(
    {
        "FP8": EightBits("modelopt"),
        "FP8_PER_CHANNEL_PER_TOKEN": EightBits("modelopt", rounds=True),
        "FP8_PB_WO": EightBits("modelopt", (128, 128)),
        "MXFP8": EightBits("modelopt", (1, 32)),
        "W8A16": EightBits("modelopt"),
        "W8A8_SQ_PER_CHANNEL": EightBits("modelopt"),
    }
)
"""Those of ModelOpt that are read. Where inputs have a scale in the file, they are not rounded here."""


def _of_modelopt(said: Mapping[str, Any]) -> EightBits:
    algorithm = str(said.get("quant_algo") or f"diffusers' {said.get('quant_type')}")
    if algorithm.upper() not in ALGORITHMS:
        raise ModelError(f"modelopt as {algorithm}")
    return ALGORITHMS[algorithm.upper()]


FORMATS = ("float-quantized", "int-quantized", "naive-quantized", "mxfp8-quantized")


def _of_compressed_tensors(said: Mapping[str, Any]) -> EightBits:
    """All its groups of layers have to be packed in one way."""
    for key in ("transform_config", "sparsity_config"):
        if (said.get(key) or {}).get("format") != "dense" and said.get(key):
            raise ModelError(f"compressed-tensors with a {key}")
    if (status := said.get("quantization_status")) != "compressed":
        raise ModelError(f"compressed-tensors with quantization_status={status!r}")
    groups = [dict(group) for group in said["config_groups"].values()]
    found = {_of_group(group, str(group.get("format") or said.get("format"))) for group in groups}
    if len(found) != 1:
        raise ModelError(f"compressed-tensors in {len(found)} ways at once (config_groups)")
    return found.pop()


def _of_group(group: Mapping[str, Any], form: str) -> EightBits:
    weights, inputs = group["weights"], group.get("input_activations") or {}
    bits, kind, group_size = weights.get("num_bits", 8), weights.get("type", "int"), weights.get("group_size")
    if form not in FORMATS or bits != 8:
        raise ModelError(f"compressed-tensors as {form} in {bits} bits")
    if not weights.get("symmetric", True):
        raise ModelError("compressed-tensors around another zero than 0 (symmetric=False)")
    if weights.get("actorder") in ("group", "dynamic", True):
        raise ModelError("compressed-tensors with inputs in another order (actorder)")
    rounds = inputs.get("strategy") == "token" and inputs.get("dynamic") is True and inputs.get("symmetric", True)
    alike = (inputs.get("num_bits", 8), inputs.get("type", "int")) == (bits, kind)
    block = None
    if weights.get("strategy") == "block":
        block = _block(weights["block_structure"])
    elif group_size is not None and group_size > 0:
        block = (1, int(group_size))
    return EightBits("compressed-tensors", block, bool(rounds) and alike and block is None)


def _block(said: Any) -> tuple[int, int]:
    rows, inputs = map(int, said.split("x") if isinstance(said, str) else said)
    if min(rows, inputs) < 1:
        raise ValueError("it has sizes below 1")
    return rows, inputs


METHODS: Mapping[str, Callable[[Mapping[str, Any]], EightBits]] = MappingProxyType(
    {"fp8": _of_transformers, "modelopt": _of_modelopt, "compressed-tensors": _of_compressed_tensors}
)
"""`quant_method` -> how its configuration is read."""
