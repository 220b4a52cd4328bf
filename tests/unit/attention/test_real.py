"""Libraries of attention themselves, where they are at hand and their code computes on a CPU.

SageAttention's kernels run in Triton's interpreter, in a process whose assertions are off, since the library asserts a
GPU: OMNIMUSE_SAGEATTENTION names a checkout of its repository.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from omnimuse.attention.backends.libraries import XFORMERS, XFormers
from omnimuse.attention.backends.sdpa import Sdpa
from omnimuse.attention.layout import Layout
from tests.unit.attention.sage import far, given

CHECKOUT = os.environ.get("OMNIMUSE_SAGEATTENTION")
LENGTHS = ((30, 100), (77, 53))


@pytest.mark.skipif(not CHECKOUT, reason="OMNIMUSE_SAGEATTENTION names no checkout of SageAttention")
@pytest.mark.timeout(600)
def test_sageattention_attends_nearly_as_sdpa_and_each_row_as_if_it_were_alone() -> None:
    root = Path(__file__).parents[3]
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join((str(root), str(CHECKOUT)))}
    subprocess.run([sys.executable, "-O", "-m", "tests.unit.attention.sage"], env=env, cwd=root, check=True)


def test_xformers_takes_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    fmha: Any = pytest.importorskip("xformers.ops.fmha", reason="it is not installed")

    class Written:
        """An operator that its checks have let through, for a CPU."""

        @staticmethod
        def apply(inputs: Any, needs_gradient: bool) -> tuple[Tensor, None]:
            q, k = inputs.query, inputs.key
            scores = torch.einsum("rqnh,rknh->rnqk", q, k) * q.shape[-1] ** -0.5
            if inputs.attn_bias is not None:
                scores = scores + inputs.attn_bias.materialize((q.shape[1], k.shape[1]), dtype=q.dtype)
            return torch.einsum("rnqk,rknh->rqnh", scores.softmax(-1), inputs.value), None

    monkeypatch.setattr(fmha, "_dispatch_fw", lambda inputs, needs_gradient: Written)
    backend, (layout, keys) = XFormers(XFORMERS), (Layout(lengths) for lengths in LENGTHS)
    q, k, v = given(2, 70, 16, torch.float32)
    assert far(backend(q, k, v), Sdpa()(q, k, v)) < 1e-5
    q, k, v = given(1, 130, 16, torch.float32)
    found = backend.packed(q, k, v, layout, keys)
    for mine, theirs in zip(layout.slices(), keys.slices(), strict=True):
        assert far(found[:, mine], Sdpa()(q[:, mine], k[:, theirs], v[:, theirs])) < 1e-5
