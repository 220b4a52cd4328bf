"""Layers that torchao and bitsandbytes themselves have packed: what is read, written and packed here is theirs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from omnimuse.quant.packings import Rows
from omnimuse.quant.schemes import SCHEMES
from tests.checkpoints import by_libraries, torchao
from tests.checkpoints.by_libraries import INPUTS, KEPT, LAYER, MULTIPLIED, weight
from tests.unit.worker.test_bitsandbytes import read_all

MADE = by_libraries.made()
IN_FLOATS = ("torchao-int8-groups", "bitsandbytes-nf4-double-96", "bitsandbytes-fp4-double-96")
"""What is not kept packed here."""
ROUNDED = ("torchao-int4", "bitsandbytes-int8")
"""Where products are of the same numbers in another order: the last bit may differ."""


@pytest.mark.parametrize("kind", MADE)
def test_what_they_packed_is_read_as_what_they_read(kind: str, tmp_path: Path) -> None:
    shutil.copy(KEPT / f"{kind}.safetensors", tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    found = read_all(tmp_path)[LAYER]
    assert isinstance(found, Rows) == (kind not in IN_FLOATS)
    rounding = 1e-6 if kind in ROUNDED else 0
    floats = found.floats() if isinstance(found, Rows) else found
    torch.testing.assert_close(floats, MADE[kind]["floats"], rtol=rounding, atol=rounding)


@pytest.mark.parametrize("kind", ["int8", "int8-dynamic", "fp8", "int4", "int8-groups"])
def test_files_that_are_made_for_tests_are_as_torchao_writes_them(kind: str) -> None:
    parts, _, note = torchao._packed(weight(), kind)
    with safe_open(KEPT / f"torchao-{kind}.safetensors", "pt") as file:
        assert json.loads(file.metadata()[LAYER]) == note
        for role, part in parts.items():
            assert torch.equal(file.get_tensor(f"layers._weight_{role}"), part)


@pytest.mark.parametrize("kind", MULTIPLIED)
def test_what_is_packed_here_are_torchaos_numbers_and_so_are_products(kind: str) -> None:
    """Of float32; those of bfloat16 it rounds once more on the way."""
    scheme = SCHEMES[kind]
    parts = scheme.pack(weight())
    with safe_open(KEPT / f"torchao-{kind}.safetensors", "pt") as file:
        codes, scale = (file.get_tensor(f"layers._weight_{role}") for role in ("qdata", "scale"))
    assert torch.equal(parts["weight"], codes.view(parts["weight"].dtype))
    assert torch.equal(parts["weight_scale"], scale)
    found, expected = scheme.multiply(INPUTS, parts, torch.nn.functional.linear), MADE[f"torchao-{kind}"]["product"]
    rounding = 0 if kind == "int8-dynamic" else 1e-5  # floats are added in another order by other processors
    torch.testing.assert_close(found, expected, rtol=rounding, atol=rounding)
