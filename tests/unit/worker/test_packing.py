"""Values that travel between pools arrive as they were, or are refused."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from omnimuse.core.errors import EngineDeadError, ModelError
from omnimuse.core.output import TextRead
from omnimuse.pipeline.stream import Stream
from omnimuse.worker.packing import ALIGN, Packer, unpack

CPU = torch.device("cpu")


def travelled(value: Any) -> Any:
    packer = Packer()
    head = packer.pack(value)
    data = bytearray(packer.size)
    packer.write(memoryview(data))
    return unpack(head, memoryview(data), CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
def test_tensors_arrive_to_the_bit_and_in_their_order_in_memory(dtype: torch.dtype) -> None:
    plain = torch.randn(2, 3, 4, 5).to(dtype)
    last = plain.contiguous(memory_format=torch.channels_last)
    spread = plain[:1].expand(4, 3, 4, 5)
    empty = torch.empty(0, 7, dtype=dtype)
    for tensor in (plain, last, plain.mT, spread, empty, plain[0, 0, 0, 0]):
        found = travelled({"slot": (tensor, None)})["slot"][0]
        assert torch.equal(found, tensor) and found.dtype == dtype
    assert travelled(last).stride() == last.stride()


def test_every_tensor_begins_where_one_of_torch_does() -> None:
    found = travelled([torch.ones(3), torch.ones(5), torch.ones(1)])
    assert {(each.data_ptr() - found[0].data_ptr()) % ALIGN for each in found} == {0}


def test_records_lists_and_numbers_arrive_as_they_were() -> None:
    value = {
        "note": TextRead("prompt", "clip", 7),
        "stream": Stream([(1, 2), (3, 4)], True),
        3: [1.5, "text", b"bytes", None, True],
    }
    assert travelled(value) == value
    assert np.array_equal(travelled(np.arange(6).reshape(2, 3)), np.arange(6).reshape(2, 3))


def test_what_cannot_travel_is_refused_by_its_kind() -> None:
    with pytest.raises(ModelError, match="holds object"):
        travelled({"slot": object()})
    with pytest.raises(ModelError, match="float8"):
        travelled(torch.zeros(2).to(torch.float8_e4m3fn))


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"junk",
        msgspec.msgpack.encode({"tree": ["x", 1], "tensors": []}),
        msgspec.msgpack.encode({"tree": ["t", 0], "tensors": []}),
        msgspec.msgpack.encode({"tree": ["r", "Popen", {}], "tensors": []}),
        msgspec.msgpack.encode({"tree": ["r", "Stream", {"other": 1}], "tensors": []}),
        msgspec.msgpack.encode(
            {"tree": 1, "tensors": [{"at": 0, "dtype": "float32", "shape": [9], "order": [0], "host": True}]}
        ),
        msgspec.msgpack.encode(
            {"tree": 1, "tensors": [{"at": -8, "dtype": "float32", "shape": [1], "order": [0], "host": True}]}
        ),
    ],
)
def test_what_makes_no_sense_runs_nothing_and_is_refused(head: bytes) -> None:
    with pytest.raises(EngineDeadError, match="makes no sense"):
        unpack(head, memoryview(bytearray(16)), CPU)
