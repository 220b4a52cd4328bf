"""Weights in fewer bits: how far products are from exact ones, and what must hold to the bit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.core.config import QUANT
from omnimuse.core.errors import ModelError
from omnimuse.core.plans import Slices
from omnimuse.quant.abreast import MOST, abreast_for, laid, outputs_together
from omnimuse.quant.codes import CODES, GROUPED, MICRO, Small
from omnimuse.quant.grids import hold_still
from omnimuse.quant.linear import PackedRows, QuantizedLinear
from omnimuse.quant.packings import PACKINGS, WIDE_FP8, Rows
from omnimuse.quant.schemes import SCHEMES, Fp8, Int4, Int8, Scheme, held, own, reading, whole_product
from omnimuse.quant.stacked import Stacked
from tests.checkpoints.gguf_file import random_blocks
from tests.second_device import ELSEWHERE, SecondDevice

INPUTS, OUTPUTS = 2560, 96
BOUNDS = {"int8": 0.01, "int8-dynamic": 0.015, "int4": 0.12, "fp8": 0.035, "fp8-dynamic": 0.05}
"""Error of a product, as a part of its size, for weights and inputs that are normal."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer(scheme: str, weight: Tensor, bias: Tensor | None, arithmetic: torch.dtype = torch.float32) -> QuantizedLinear:
    """A layer with `weight` packed."""
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], len(weight), bias is not None)
    made = QuantizedLinear(linear, PACKINGS[scheme], arithmetic)
    parts = {name: torch.empty_like(part, device="cpu") for name, part in made.packed.items()}
    PackedRows(made.scheme, parts, made.inputs).copy_(weight)
    made.hold(parts)
    if bias is not None:
        made.bias = nn.Parameter(bias, requires_grad=False)
    return made


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


def test_every_scheme_has_its_bound() -> None:
    assert BOUNDS.keys() == SCHEMES.keys()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_library_that_asks_for_the_format_of_packed_weights_hears_of_what_they_stand_for(scheme: str) -> None:
    """T5 of transformers makes the inputs of a layer what its weights are: of codes that would be nonsense."""
    made = layer(scheme, normal(6, 128), None)
    assert (made.weight.dtype, made.weight.shape) == (torch.float32, (6, 128))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_product_with_packed_weights_is_near_the_exact_one(scheme: str, dtype: torch.dtype) -> None:
    weight, bias, x = normal(OUTPUTS, INPUTS) * 0.02, normal(OUTPUTS, seed=1), normal(3, 7, INPUTS, seed=2) * 40
    found = layer(scheme, weight, bias, torch.float32 if dtype == torch.bfloat16 else dtype)(x.to(dtype))
    assert found.dtype == dtype and found.shape == (3, 7, OUTPUTS)
    more = 0.004 if dtype == torch.bfloat16 else 0.0
    assert 0 < error(found, F.linear(x, weight, bias)) < BOUNDS[scheme] + more


@pytest.mark.parametrize("inputs", [96, 33])
def test_a_token_that_is_written_is_multiplied_by_what_reads_packed_weights_once(inputs: int) -> None:
    """The same in any company, where tiles ask for that. Of other numbers of inputs the kernel would read too far."""
    weight, x = normal(48, inputs), normal(20, 1, inputs, seed=1).bfloat16()
    packed = layer("int8", weight, None)
    expected = x.float() @ packed.scheme.unpack(packed.packed).t()
    assert error(packed(x).float(), expected) < 0.005
    assert (reading(x, packed.scheme, any_number=True) is not None) == (inputs == 96)
    assert reading(x, packed.scheme) is None, "many rows"
    assert reading(x.transpose(0, 1), packed.scheme) is None, "a prompt of 20 tokens is not written"
    if inputs == 96:
        packed.heights = (4, 1)
        alone = torch.cat([packed(each[None]) for each in x])
        for count in range(1, 21):
            assert torch.equal(packed(x[:count]), alone[:count])
        assert error(alone.float(), expected) < 0.005


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_a_layer_that_rounds_reads_tokens_in_float32_once_too_and_no_prompt(scheme: str) -> None:
    """What it makes of them is what it makes of the same tokens in bfloat16; of a prompt nothing is rounded."""
    if scheme == "int4" and not outputs_together():
        pytest.skip("torch has no fast kernel for four bits on this processor")
    packed, x = layer(scheme, normal(64, 128), normal(64, seed=2)), normal(6, 1, 128, seed=1)
    packed = abreast(packed) if scheme == "int4" else packed
    exact = F.linear(x, packed.scheme.unpack(packed.packed), packed.bias)
    assert error(packed(x), exact) < 1e-6
    packed.rounds = True
    found = packed(x)
    assert found.dtype == torch.float32 and 1e-4 < error(found, exact) < 0.005
    once = reading(x, packed.scheme, rounds=True)
    assert once is not None and packed.bias is not None
    assert torch.equal(found[:, 0], once.few_product(x[:, 0].bfloat16(), packed.packed) + packed.bias)
    assert error(packed(x.transpose(0, 1)), exact.transpose(0, 1)) < 1e-6, "six tokens of one row"


FASTER = pytest.mark.skipif(not outputs_together(), reason="torch has no fast kernel for four bits on this processor")


def abreast(packed: QuantizedLinear) -> QuantizedLinear:
    """The same layer, laid for tokens that are written."""
    chosen = abreast_for(packed.scheme, *packed.like().shape)
    assert chosen is not None
    packed.hold(laid(packed.scheme, packed.packed, chosen))
    packed.scheme = chosen
    return packed


@FASTER
@pytest.mark.parametrize(("scheme", "outputs", "inputs"), [("int4", 576, 320), ("int4-32", 64, 96), ("int4", 128, 64)])
def test_four_bits_that_outputs_have_abreast_stand_for_the_same_in_no_more_memory(
    scheme: str, outputs: int, inputs: int
) -> None:
    """But that the scale and the middle of each group are rounded to bfloat16."""
    packed = layer(scheme, normal(outputs, inputs) + 0.5, None)
    expected, before = packed.scheme.unpack(packed.packed), dict(packed.packed)
    shapes = {name: (each.shape, each.dtype) for name, each in abreast(packed).packed.items()}
    empty = packed.scheme.empty(outputs, inputs)
    assert shapes == {name: (each.shape, each.dtype) for name, each in empty.items()}
    found, steps = packed.scheme.unpack(packed.packed), before["weight_scale"].amax()
    assert 0 < float((found - expected).abs().amax()) < float(steps) / 16
    assert error(found, expected) < 2**-8
    size = sum(part.nbytes for part in packed.parameters())
    groups = before["weight_scale"].numel()
    assert size == outputs * inputs / 2 + 4 * groups < sum(part.nbytes for part in before.values()), "no part is left"
    assert packed.like().shape == (outputs, inputs) and packed.scheme.scales(packed.packed).isfinite().all()


@FASTER
@pytest.mark.parametrize("scheme", ["int4", "int4-32"])
def test_tokens_that_are_written_read_four_bits_once_and_are_the_same_in_any_company(scheme: str) -> None:
    packed, x = layer(scheme, normal(192, 512), normal(192, seed=2)), normal(MOST + 9, 1, 512, seed=1).bfloat16()
    assert packed.bias is not None
    expected = F.linear(x.float(), packed.scheme.unpack(packed.packed), packed.bias)
    assert reading(x[:1], packed.scheme) is None, "two numbers in a byte are of one output"
    abreast(packed)
    assert reading(x[:MOST], packed.scheme) is packed.scheme and reading(x, packed.scheme) is None
    assert reading(x[:1].float(), packed.scheme) is None, "it would round what is in float32"
    assert error(packed(x), expected) < 0.005 and error(packed(x.float()), expected) < 0.003
    packed.heights = (8, 1)
    alone = torch.cat([packed(each[None]) for each in x])
    assert error(alone, expected) < 0.005
    for count in (2, 3, 4, 5, 7, 16, 33, 64, len(x)):
        assert torch.equal(packed(x[-count:]), alone[-count:])
    prompt = x[:20].transpose(0, 1)
    assert torch.equal(packed(prompt)[:, 4:12], packed(prompt[:, 4:12].contiguous())), "in tiles of eight"
    assert error(packed(prompt).transpose(0, 1), expected[:20]) < 0.005


def test_four_bits_stay_as_they_are_where_the_kernel_would_not_take_them() -> None:
    together = outputs_together() or 64
    assert outputs_together("none of them") == 0
    others = {"AVX512", "AVX2"} - {torch.backends.cpu.get_cpu_capability()}
    assert all(outputs_together(kind) == 0 for kind in others), "an order that torch does not read here"
    assert abreast_for(Int4(), together + 16, 64) is None
    assert abreast_for(Int4(16), together, 64) is None and abreast_for(Int4(), together, 40) is None
    assert abreast_for(Int8(), together, 64) is None


@FASTER
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")  # the compiler's own
@pytest.mark.parametrize("shape", [(3, 1), (1, 5)])
def test_four_bits_that_are_read_once_are_compiled_whole(shape: tuple[int, int]) -> None:
    packed, x = abreast(layer("int4", normal(64, 128), None)), normal(*shape, 128, seed=1).bfloat16()
    torch._dynamo.reset()
    compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), packed(x))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_layer_multiplies_with_what_its_parts_stand_for(scheme: str) -> None:
    weight, x = normal(OUTPUTS, INPUTS), normal(5, INPUTS, seed=1)
    made = layer(scheme, weight, None)
    stands_for = made.scheme.unpack(made.packed)
    assert error(stands_for, weight) < BOUNDS[scheme]
    if "dynamic" not in scheme:
        torch.testing.assert_close(made(x), F.linear(x, stands_for), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rows_are_packed_alike_in_pieces_and_as_a_whole(scheme: str) -> None:
    weight = normal(OUTPUTS, INPUTS)
    whole = SCHEMES[scheme].pack(weight)
    pieces = {name: torch.empty_like(part) for name, part in whole.items()}
    rows = PackedRows(SCHEMES[scheme], pieces, INPUTS)
    rows.narrow(0, 50, OUTPUTS - 50).copy_(weight[50:])
    rows.narrow(0, 0, 50).copy_(weight[:50])
    assert all(torch.equal(pieces[name], part) for name, part in whole.items())


@pytest.mark.parametrize(("inputs", "groups"), [(64, 1), (96, 3), (40, 5), (9, 9), (2560, 40)])
def test_four_bits_are_two_in_a_byte_in_groups_that_divide_the_inputs(inputs: int, groups: int) -> None:
    scheme, weight = Int4(), normal(4, inputs)
    parts = scheme.pack(weight)
    assert {name: part.shape for name, part in parts.items()} == {
        name: part.shape for name, part in scheme.empty(4, inputs).items()
    }
    assert parts["weight_scale"].shape == (4, groups)
    off = (scheme.unpack(parts) - weight).abs().unflatten(-1, (groups, -1)).amax(-1)
    assert bool((off <= parts["weight_scale"] / 2 + 1e-5).all()), "at most half a step"


def test_the_schemes_are_those_that_can_be_asked_for() -> None:
    assert tuple(SCHEMES) == QUANT


def test_a_part_of_the_columns_is_refused() -> None:
    parts = Int8().pack(normal(4, 8))
    with pytest.raises(ModelError, match="leave this layer out"):
        PackedRows(Int8(), parts, 8).narrow(1, 0, 4)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("end", [8, 24, 33])
def test_columns_are_packed_with_whole_rows_and_stand_for_the_same(name: str, end: int) -> None:
    """So products of ranks, each of which has some columns, are added up to what one makes."""
    weight, x = normal(OUTPUTS, 64), normal(3, 64, seed=1)
    whole, total, floats = layer(name, weight, None), torch.zeros(3, OUTPUTS), torch.zeros(OUTPUTS, 64)
    for spans in (((0, end), (40, 64)), ((end, 40),)):
        columns = Slices(1, 64, spans)
        linear = nn.Linear(columns.held, OUTPUTS, bias=False, device="meta")
        made = QuantizedLinear(linear, SCHEMES[name], torch.float32, columns, lambda _: x.abs().amax(-1, keepdim=True))
        made.to_empty(device="cpu")
        PackedRows(SCHEMES[name], made.packed, made.inputs, columns).copy_(weight)
        total += made(held(x, columns))
        floats[:, torch.cat([torch.arange(*span) for span in spans])] = made.scheme.unpack(made.packed)
    assert torch.equal(floats, whole.scheme.unpack(whole.packed))
    torch.testing.assert_close(total, whole(x))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rows_of_zeros_stay_zeros(scheme: str) -> None:
    made = layer(scheme, torch.zeros(8, 64), None)
    assert torch.equal(made(normal(2, 64)), torch.zeros(2, 8))
    assert torch.equal(layer(scheme, normal(8, 64), None)(torch.zeros(2, 64)), torch.zeros(2, 8))


@pytest.mark.parametrize("inputs", [40, 1024, 3000])
def test_products_of_whole_numbers_are_exact_however_many_are_added_up(inputs: int) -> None:
    generator = torch.Generator().manual_seed(3)
    x, weight = (torch.randint(100, 128, (count, inputs), generator=generator).to(torch.int8) for count in (5, 7))
    exact = (x.double() @ weight.double().t()).float()
    assert torch.equal(whole_product(x, weight), exact)


def test_a_token_is_rounded_by_itself() -> None:
    """An outlier in one token costs the others nothing."""
    made, x = layer("int8-dynamic", normal(OUTPUTS, INPUTS), None), normal(4, INPUTS, seed=5)
    loud = x.clone()
    loud[2] *= 1000
    assert torch.equal(made(loud)[[0, 1, 3]], made(x)[[0, 1, 3]])


@pytest.mark.parametrize("packing", ["fp8", "fp8-dynamic", WIDE_FP8, "mxfp8", "mxfp8-e5m2", "fp8-128"])
def test_the_scale_of_a_row_is_no_number_where_one_of_its_small_floats_is_none(packing: str) -> None:
    scheme = PACKINGS[packing]
    assert isinstance(scheme, Fp8 | Small)
    parts = {name: torch.zeros(512, *each.shape[1:], dtype=each.dtype) for name, each in scheme.empty(1, 32).items()}
    parts["weight_scale"] += 1
    parts["weight"][:, 5] = torch.arange(512) % 256
    expected = parts["weight"].view(scheme.kind).float().isfinite().all(1)
    assert 0 < int((~expected).sum()) < 20
    assert torch.equal(scheme.scales(parts).isfinite().all(1), expected)
    assert scheme.outputs(parts) == 512


def codes(packing: str, outputs: int, inputs: int) -> dict[str, torch.Tensor]:
    """Random weights whose numbers share factors; in the highest bits of their bytes are no infinite ones."""
    draw, parts = torch.Generator().manual_seed(0), PACKINGS[packing].empty(outputs, inputs)
    whole = torch.randint(0x70, parts["weight"].shape, generator=draw, dtype=torch.uint8)
    return {"weight": whole, "weight_scale": torch.rand(parts["weight_scale"].shape, generator=draw)}


@pytest.mark.parametrize("inputs", [64, 200, 256])
@pytest.mark.parametrize("end", [8, 24, 33])
def test_columns_of_groups_in_8_bits_stand_for_the_same_wherever_they_end(inputs: int, end: int) -> None:
    packing, parts = GROUPED["fp8-128"], codes("fp8-128", 6, inputs)
    expected = Fp8().floats(parts["weight"]) * parts["weight_scale"].repeat_interleave(128, 1)[:, :inputs]
    assert torch.equal(packing.unpack(parts), expected)
    for spans in (((0, end), (40, inputs)), ((end, 40),), ((0, inputs),), ()):
        columns = Slices(1, inputs, spans)
        some, found = packing.some(columns, own), packing.part(parts, columns)
        sizes = {name: each.shape for name, each in some.empty(6, columns.held).items()}
        assert {name: each.shape for name, each in found.items()} == sizes
        assert torch.equal(some.unpack(found), held(expected, columns))


def some_layer(packing: str) -> QuantizedLinear:
    """One of 512 inputs, of whatever weights."""
    if isinstance(PACKINGS[packing], Scheme):
        return layer(packing, normal(32, 512), None)
    made = layer("int8", normal(32, 512), None)
    known = packing in {**CODES, **MICRO, **GROUPED}
    parts = codes(packing, 32, 512) if known else {"weight": torch.from_numpy(random_blocks(packing, 32, 512))}
    made.scheme = PACKINGS[packing]
    made.hold(parts)
    return made


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("packing", PACKINGS)
def test_what_is_no_number_in_a_token_leaves_none_in_what_becomes_of_it_and_others_as_they_are(
    packing: str, value: float
) -> None:
    x, made = normal(3, 512, seed=1), some_layer(packing)
    expected = made(x)
    x[1, 5] = value
    found = made(x)
    assert not bool(found[1].isfinite().any())
    assert torch.equal(found[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_that_are_no_numbers_are_packed_as_such(scheme: str) -> None:
    weight = normal(8, 64)
    weight[3, 7] = torch.nan
    made, x = layer(scheme, weight, None), normal(2, 64, seed=1)
    assert made(x).isnan().any(0).nonzero().tolist() == [[3]]
    assert not bool(made.scheme.scales(made.packed)[3].isfinite().all()), "and whoever loads them can tell"


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_layer_of_every_packing_multiplies_on_a_device_what_it_does_on_the_cpu_and_nobody_waits(packing: str) -> None:
    x, made = normal(5, 512, seed=1), some_layer(packing)
    expected = made(x)
    with SecondDevice() as device:
        there = x.to(ELSEWHERE)
        made.to(ELSEWHERE)
        device.waits.clear()
        found = made(there)
        assert device.waits == []
        assert torch.equal(found.cpu(), expected)


@pytest.mark.costly("packings compiled")
@pytest.mark.timeout(240)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")  # the compiler's own
@pytest.mark.parametrize("packing", PACKINGS)
def test_a_layer_of_every_packing_is_compiled_whole(packing: str) -> None:
    x, made = normal(5, 512, seed=1), some_layer(packing)
    torch._dynamo.reset()
    hold_still()
    compiled = torch.compile(made, dynamic=True, fullgraph=True, backend="aot_eager")
    assert error(compiled(x), made(x)) < 1e-5


def test_rows_of_several_packings_are_written_band_by_band_and_multiplied_as_one() -> None:
    stacked = Stacked(((PACKINGS["Q4_K"], 4), (PACKINGS["int4"], 3), (PACKINGS["Q6_K"], 5)))
    parts = {name: torch.empty_like(each, device="cpu") for name, each in stacked.empty(12, 512).items()}
    space = stacked.rows(parts, 512)
    bands = [
        Rows("Q4_K", 512, {"weight": torch.from_numpy(random_blocks("Q4_K", 4, 512))}),
        Rows("int4", 512, SCHEMES["int4"].pack(normal(3, 512))),
        Rows("Q6_K", 512, {"weight": torch.from_numpy(random_blocks("Q6_K", 5, 512, seed=1))}),
    ]
    for start, band in zip((0, 4, 7), bands, strict=True):
        space.narrow(0, start, band.shape[0]).put(band)
    whole = torch.cat([band.floats() for band in bands])
    assert torch.equal(stacked.unpack(parts), whole) and stacked.outputs(parts) == 12
    assert len(stacked.scales(parts)) == sum(band.scales().numel() for band in bands)
    x = normal(2, 512, seed=2)
    assert torch.equal(stacked.multiply(x, parts, F.linear), F.linear(x, whole))
    with pytest.raises(ModelError, match="rows 0 to 5 along dimension 0 are no band"):
        space.narrow(0, 0, 5)
    with pytest.raises(ModelError, match="a layer of several packings cannot be cut"):
        stacked.empty(6, 512)
