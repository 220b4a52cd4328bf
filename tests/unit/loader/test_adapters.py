"""Files of adapters as the world has them: names, strengths, and what is refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from omnimuse.core.errors import CapacityError, RequestError
from omnimuse.loader.adapter_file import find_file, stamp
from omnimuse.loader.adapter_names import Layer, Named, layer_of, named
from omnimuse.loader.adapter_settings import Strength
from omnimuse.loader.adapters import Reader
from omnimuse.loader.rules import Alias, Fuse, Rename
from omnimuse.loader.sites import Sites
from omnimuse.lora.adapter import Adapter, Product
from tests.checkpoints.adapters import Layers, Style, kohya, peft, products, write

LAYERS: Layers = {"blocks.0.to_q": (6, 8), "blocks.0.to_k": (4, 8), "blocks.0.out": (8, 6)}
ALIASES = (Alias(r"double\.(\d+)\.qk", (r"blocks.\1.to_q", r"blocks.\1.to_k")),)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qk = nn.Linear(8, 10)
        self.final = nn.Linear(6, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.ModuleList([Block()])
        self.table = nn.Embedding(5, 8)


RULES = (
    Rename(r"^blocks\.", "stack."),
    Rename(r"\.out\.", ".final."),
    Fuse(("to_q.weight", "to_k.weight"), "qk.weight"),
    Fuse(("to_q.bias", "to_k.bias"), "qk.bias"),
)


def reader_of(home: Path, dtype: torch.dtype = torch.float32) -> Reader:
    """For a network that computes in `dtype`, whose checkpoint is written into `home`."""
    folder = home / "transformer"
    folder.mkdir(parents=True)
    stored: dict[str, Tensor] = {"table.weight": torch.zeros(5, 8)}
    for name, (outputs, inputs) in LAYERS.items():
        stored |= {f"{name}.weight": torch.zeros(outputs, inputs), f"{name}.bias": torch.zeros(outputs)}
    save_file(stored, folder / "diffusion_pytorch_model.safetensors")
    sites = Sites(Net().to(dtype), folder, lambda: RULES, {}, ALIASES)
    return Reader({"transformer": sites}, ["transformer"], torch.device("cpu"))


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return reader_of(tmp_path)


def whole(
    found: Mapping[tuple[str, str], tuple[Product, ...]],
    path: str,
    outputs: int,
    inputs: int,
    component: str = "transformer",
) -> Tensor:
    """What all products at `path` are as one difference of its weight."""
    difference = torch.zeros(outputs, inputs)
    for product in found[component, path]:
        own = product.up if product.down is None else product.up @ product.down
        difference[product.start : product.start + len(product.up)] += own
    return difference


def expected(seed: int = 0, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """The differences of the two layers that `LAYERS` became."""
    made = {name: factor * up @ down for name, (down, up) in products(LAYERS, seed).items()}
    return torch.cat([made["blocks.0.to_q"], made["blocks.0.to_k"]]), made["blocks.0.out"]


@pytest.mark.parametrize(
    ("style", "factor"),
    [
        (peft("transformer."), 1.0),
        (peft("diffusion_model."), 1.0),
        (peft("model.diffusion_model."), 1.0),
        (peft("base_model.model."), 1.0),
        (peft(""), 1.0),
        (kohya("lora_unet_", 2.0), 0.5),
        (kohya("lora_unet__", 4.0), 1.0),
        (kohya("lora_transformer_", 1.0), 0.25),
        (lambda name, down, up: {f"{name}.lora.down.weight": down, f"{name}.lora.up.weight": up}, 1.0),
        (
            lambda name, down, up: {
                f"{name}.lora_A.default.weight": down,
                f"{name}.lora_B.default.weight": up,
                f"{name}.alpha": torch.tensor(8.0),
            },
            2.0,
        ),
    ],
)
def test_the_words_of_every_trainer_mean_the_same_products(
    reader: Reader, tmp_path: Path, style: object, factor: float
) -> None:
    file = write(tmp_path / "a.safetensors", LAYERS, style)  # type: ignore[arg-type]
    found = reader(str(file)).products
    fused, last = expected(factor=factor)
    assert torch.allclose(whole(found, "stack.0.qk", 10, 8), fused, atol=1e-6)
    assert torch.allclose(whole(found, "stack.0.final", 8, 6), last, atol=1e-6)


@pytest.mark.parametrize("layer", ["double.0.qk", "lora_unet_double_0_qk"])
def test_a_layer_that_an_adapter_has_whole_is_given_out_to_those_that_the_checkpoint_has(
    reader: Reader, tmp_path: Path, layer: str
) -> None:
    file = write(tmp_path / "a.safetensors", {layer: (10, 8)}, peft(""))
    down, up = products({layer: (10, 8)})[layer]
    assert torch.allclose(whole(reader(str(file)).products, "stack.0.qk", 10, 8), up @ down, atol=1e-6)


@pytest.mark.parametrize(
    "again",
    [{"double.0.qk": (10, 8)}, {"lora_unet_double_0_qk": (10, 8), "lora_unet_blocks_0_out": (8, 6)}],
)
def test_a_layer_that_a_file_names_twice_is_worn_once(
    reader: Reader, tmp_path: Path, caplog: pytest.LogCaptureFixture, again: Layers
) -> None:
    file = write(tmp_path / "a.safetensors", {**LAYERS, **again}, peft(""))
    found, (fused, last) = reader(str(file)).products, expected()
    assert torch.allclose(whole(found, "stack.0.qk", 10, 8), fused, atol=1e-6)
    assert torch.allclose(whole(found, "stack.0.final", 8, 6), last, atol=1e-6)
    assert all(f"{name} is left out, as the file has that by blocks.0." in caplog.text for name in again)


@pytest.mark.parametrize("called", ["lora_B.bias", "diff_b"])
def test_a_bias_of_the_up_matrix_is_added_too(reader: Reader, tmp_path: Path, called: str) -> None:
    name, (down, up) = next(iter(products(LAYERS).items()))
    bias = torch.arange(6.0)
    tensors = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up, f"{name}.{called}": bias}
    save_file(tensors, tmp_path / "a.safetensors")
    [product] = reader(str(tmp_path / "a.safetensors")).products["transformer", "stack.0.qk"]
    out = torch.zeros(1, 10)
    product.add(out, torch.zeros(1, 8), 0.5)
    assert torch.equal(out[0, :6], bias / 2)


def test_the_bias_of_an_up_matrix_goes_with_its_alpha_and_a_difference_of_a_bias_is_as_it_is(
    reader: Reader, tmp_path: Path
) -> None:
    name, bias = "blocks.0.out", torch.arange(8.0)
    tensors = with_alpha(torch.tensor(8.0))(name, *products(LAYERS)[name])
    save_file({**tensors, f"{name}.lora_B.bias": bias, f"{name}.diff_b": 10 * bias}, tmp_path / "a.safetensors")
    [product] = reader(str(tmp_path / "a.safetensors")).products["transformer", "stack.0.final"]
    assert product.bias is not None and torch.equal(product.bias, 2 * bias + 10 * bias)
    save_file({f"{name}.lora_B.bias": bias}, tmp_path / "b.safetensors")
    assert "without the other half of the product" in refused(reader, tmp_path / "b.safetensors")


def test_a_bias_alone_is_added_too(reader: Reader, tmp_path: Path) -> None:
    name, bias = next(iter(LAYERS)), torch.arange(6.0)
    save_file({f"{name}.diff_b": bias}, tmp_path / "a.safetensors")
    [product] = reader(str(tmp_path / "a.safetensors")).products["transformer", "stack.0.qk"]
    out = torch.zeros(1, 10)
    product.add(out, torch.ones(1, 8), 0.5)
    assert torch.equal(out[0], torch.cat([bias / 2, torch.zeros(4)]))
    save_file({f"{name}.diff_b": torch.ones(5)}, tmp_path / "b.safetensors")
    assert "is not of its 6 outputs" in refused(reader, tmp_path / "b.safetensors")


def test_differences_of_nothing_but_zeros_are_left_out_and_those_of_norms_refused(
    reader: Reader, tmp_path: Path
) -> None:
    name, (down, up) = next(iter(products(LAYERS).items()))
    tensors = {**peft()(name, down, up), "norm.diff": torch.zeros(8), "norm.diff_b": torch.zeros(8)}
    save_file(tensors, tmp_path / "a.safetensors")
    assert list(reader(str(tmp_path / "a.safetensors")).products) == [("transformer", "stack.0.qk")]
    save_file({**tensors, "norm.diff_b": torch.ones(8)}, tmp_path / "b.safetensors")
    assert "of what is no linear layer of this model (norm.diff_b)" in refused(reader, tmp_path / "b.safetensors")


def test_alphas_in_the_metadata_count_by_pattern(reader: Reader, tmp_path: Path) -> None:
    said = {"transformer.r": 4, "transformer.lora_alpha": 8, "transformer.alpha_pattern": {"out": 2}}
    metadata = {"lora_adapter_metadata": json.dumps(said)}
    file = write(tmp_path / "a.safetensors", LAYERS, metadata=metadata)
    found = reader(str(file)).products
    assert torch.allclose(whole(found, "stack.0.qk", 10, 8), expected(factor=2.0)[0], atol=1e-6)
    assert torch.allclose(whole(found, "stack.0.final", 8, 6), expected(factor=0.5)[1], atol=1e-6)


def test_an_alpha_that_the_metadata_say_of_no_component_counts_for_all(reader: Reader, tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", LAYERS, metadata={"lora_adapter_metadata": '{"lora_alpha": 8}'})
    found = reader(str(file)).products
    assert torch.allclose(whole(found, "stack.0.final", 8, 6), expected(factor=2.0)[1], atol=1e-6)


def test_what_an_adapter_takes_is_told_before_a_number_is_read_and_it_may_be_refused_then(tmp_path: Path) -> None:
    name, bias = "blocks.0.out", torch.ones(8)
    layers = {**LAYERS, "double.0.qk": (10, 8)}
    file = tmp_path / "a.safetensors"
    told = list[int]()
    for style in (peft(""), lambda name, down, up: {f"{name}.diff": up @ down}, with_alpha(torch.tensor(2.0))):
        write(file, layers, style)
        save_file({**load_file(file), f"{name}.diff_b": bias}, file)
        for dtype in (torch.float32, torch.bfloat16):
            reader = reader_of(tmp_path / str(len(told)), dtype)
            adapter = reader(str(file), room=lambda planned: told.append(planned.nbytes))
            assert told[-1] == adapter.nbytes
    write(file, LAYERS, lambda name, down, up: peft("")(name, down * float("nan"), up))

    def none(planned: Adapter) -> None:
        raise CapacityError("no room")

    with pytest.raises(CapacityError):
        reader(str(file), room=none)


def test_a_layer_that_became_several_takes_its_lower_matrix_once(tmp_path: Path) -> None:
    reader = reader_of(tmp_path)
    file = write(tmp_path / "a.safetensors", {"double.0.qk": (10, 8)}, peft(""))
    assert reader(str(file)).nbytes == 4 * (4 * 8 + 10 * 4)


@pytest.mark.parametrize("layer", ["blocks.0.out", "double.0.qk"])
def test_a_whole_difference_takes_itself_and_no_more(reader: Reader, tmp_path: Path, layer: str) -> None:
    outputs, inputs = {**LAYERS, "double.0.qk": (10, 8)}[layer]
    difference = torch.randn(outputs, inputs)
    save_file({f"{layer}.diff": difference}, tmp_path / "a.safetensors")
    adapter, path = reader(str(tmp_path / "a.safetensors")), "stack.0.final" if "out" in layer else "stack.0.qk"
    assert adapter.nbytes == difference.nbytes
    assert torch.equal(whole(adapter.products, path, outputs, inputs), difference)


def test_a_folder_of_peft_counts_with_its_settings(reader: Reader, tmp_path: Path) -> None:
    folder = tmp_path / "trained"
    folder.mkdir()
    write(folder / "adapter_model.safetensors", LAYERS, peft("base_model.model."))
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 4, "use_rslora": True}))
    found = reader(str(folder)).products
    assert torch.allclose(whole(found, "stack.0.final", 8, 6), expected(factor=2.0)[1], atol=1e-6)


def test_settings_beside_a_file_that_is_not_of_peft_are_not_about_it(reader: Reader, tmp_path: Path) -> None:
    file = write(tmp_path / "other.safetensors", LAYERS)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 64}))
    assert torch.allclose(whole(reader(str(file)).products, "stack.0.final", 8, 6), expected()[1], atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "own", "alpha"),
    [
        ("blocks.0.out", None, 2.0),
        ("out", None, 2.0),
        ("blocks.0.layout", None, 8.0),
        ("blocks.0.out.0", None, 8.0),
        ("blocks.0.to_q", None, 12.0),
        ("transformer.blocks.0.to_q", None, 12.0),
        ("blocks.0.out", 6.0, 6.0),
    ],
)
def test_an_alpha_counts_over_the_rank_or_its_root_by_whole_pieces_of_a_name_and_first_where_it_stands(
    layer: str, own: float | None, alpha: float
) -> None:
    patterns = {"out": 2.0, "^blocks.0.to_.": 12.0, "to_q": 20.0}
    assert Strength(8.0, patterns).factor(layer, 16, own) == alpha / 16
    assert Strength(8.0, patterns, rooted=True).factor(layer, 16, own) == alpha / 4
    assert Strength().factor(layer, 16, own) == (1.0 if own is None else own / 16)


def two_networks(home: Path, *names: str) -> Reader:
    """For a pipeline whose second network has the names of the first."""
    sites, called = reader_of(home)._sites["transformer"], names or ("transformer", "transformer_2")
    return Reader(dict.fromkeys(called, sites), called, torch.device("cpu"))


@pytest.mark.parametrize(
    ("said", "component", "factor"),
    [
        ({"transformer.lora_alpha": 1}, "transformer_2", 0.25),
        ({"transformer.lora_alpha": 1, "transformer_2.lora_alpha": 8}, "transformer_2", 2.0),
        ({"unet.lora_alpha": 1}, "dit", 0.25),
        ({"transformer.lora_alpha": 1}, "dit", 0.25),
        ({"text_encoder.lora_alpha": 1}, "transformer_2", 1.0),
    ],
)
def test_alphas_that_the_metadata_say_of_what_draws_count_for_whichever_network_wears_it(
    tmp_path: Path, said: Mapping[str, float], component: str, factor: float
) -> None:
    """diffusers says "transformer" of a file that is for the second expert, too."""
    metadata = {"lora_adapter_metadata": json.dumps(said)}
    file = write(tmp_path / "a.safetensors", LAYERS, metadata=metadata)
    found = two_networks(tmp_path, "transformer", component)(str(file), component).products
    assert torch.allclose(whole(found, "stack.0.final", 8, 6, component), expected(factor=factor)[1], atol=1e-6)


@pytest.mark.parametrize("style", [peft(), peft("diffusion_model."), kohya(), peft("base_model.model.")])
def test_a_file_that_names_no_network_is_for_the_first_or_for_the_one_that_is_named(
    tmp_path: Path, style: Style
) -> None:
    file, reader = str(write(tmp_path / "a.safetensors", LAYERS, style)), two_networks(tmp_path)
    for component in ("", "transformer", "transformer_2"):
        assert {name for name, _ in reader(file, component).products} == {component or "transformer"}
    assert len({reader(file, component).id for component in ("", "transformer_2")}) == 2
    own = str(write(tmp_path / "b.safetensors", LAYERS, peft("transformer_2.")))
    assert {name for name, _ in reader(own).products} == {"transformer_2"}, "a name that says it is gone by"


def test_who_names_a_network_that_is_not_there_is_told_which_are(reader: Reader, tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", LAYERS)
    with pytest.raises(RequestError, match=r"cannot be for transformer_2, .*; it has transformer$"):
        reader(str(file), "transformer_2")


def test_a_shift_and_a_scale_are_turned_and_what_is_more_is_not(tmp_path: Path) -> None:
    names = (Alias(r"end\.(\w+)", (r"\1",), turned=True),)
    folder = tmp_path / "transformer"
    folder.mkdir()
    net = nn.ModuleDict({"two": nn.Linear(4, 8), "six": nn.Linear(4, 24)})
    save_file({name: each.clone() for name, each in net.state_dict().items()}, folder / "model.safetensors")
    sites = Sites(net, folder, tuple, {}, names)
    assert [(each.start, each.stop) for each in sites.find("end.two", flat=False)] == [(4, 8), (0, 4)]
    assert [(each.start, each.stop) for each in sites.find("end_six", flat=True)] == [(0, 24)]


# -- what is refused -----------------------------------------------------------------------------------------------


def refused(reader: Reader, source: Path) -> str:
    with pytest.raises(RequestError) as caught:
        reader(str(source))
    assert caught.value.param == "loras"
    assert str(source) in str(caught.value)
    return str(caught.value)


def test_a_layer_that_a_file_names_whole_and_in_part_is_refused_by_both_names(reader: Reader, tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", {"blocks.0.to_q": (6, 8), "double.0.qk": (10, 8)}, peft(""))
    assert "has double.0.qk and blocks.0.to_q for the same outputs" in refused(reader, file)


def test_an_adapter_that_controls_is_called_that(reader: Reader, tmp_path: Path) -> None:
    tensors = peft("")("blocks.0.out", *products(LAYERS)["blocks.0.out"])
    save_file({**tensors, "double_blocks.0.img_attn.norm.key_norm.scale": torch.ones(4)}, tmp_path / "a.safetensors")
    assert "is an adapter that controls by pictures, whose network is wider" in refused(
        reader, tmp_path / "a.safetensors"
    )


def test_an_adapter_that_fits_in_part_says_which_layers_there_are(reader: Reader, tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", {**LAYERS, "blocks.7.to_q": (6, 8)})
    said = refused(reader, file)
    assert "1 of its 4 layers is not in it (transformer.blocks.7.to_q)" in said
    assert "3 layers that an adapter can be for, such as blocks.0.out, blocks.0.to_q" in said


def test_an_adapter_of_another_model_says_which_layers_there_are(reader: Reader, tmp_path: Path) -> None:
    said = refused(reader, write(tmp_path / "a.safetensors", {"down.0.proj": (6, 8), "table": (5, 8)}))
    assert "none of its 2 layers is in it" in said


def test_an_adapter_of_a_wider_model_says_the_shapes(reader: Reader, tmp_path: Path) -> None:
    said = refused(reader, write(tmp_path / "a.safetensors", {"blocks.0.out": (16, 12)}))
    assert "transformer.blocks.0.out is [16, 4] times [4, 12], and that layer takes [8, r] times [r, 6]" in said


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        ("lycoris_blocks_0_to_q.lokr_w1", "LoKr"),
        ("lora_unet_blocks_0_to_q.hada_w1_a", "LoHa"),
        ("transformer.blocks.0.to_q.lora_magnitude_vector", "DoRA"),
        ("lora_unet_blocks_0_to_q.dora_scale", "DoRA"),
        ("lora_unet_blocks_0_to_q.lora_mid.weight", "LoCon"),
        ("diffusion_model.blocks.0.to_q.set_weight", "whole weights"),
        ("blocks.0.to_q.oft_blocks", "another kind"),
        ("base_model.model.layers.0.mlp.experts.lora_A.weight", "products for the weights of experts"),
        ("base_model.model.layers.0.mlp.experts.base_layer.lora_B.weight", "products for the weights of experts"),
    ],
)
def test_other_kinds_of_adapters_are_refused_by_their_names(
    reader: Reader, tmp_path: Path, tensor: str, kind: str
) -> None:
    name, (down, up) = next(iter(products(LAYERS).items()))
    save_file({tensor: torch.ones(2, 2), **peft()(name, down, up)}, tmp_path / "a.safetensors")
    assert f"is {kind}" in refused(reader, tmp_path / "a.safetensors")


def test_a_whole_difference_of_a_linear_layer_is_worn_and_of_another_one_refused(
    reader: Reader, tmp_path: Path
) -> None:
    difference = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    file = tmp_path / "a.safetensors"
    save_file({"diffusion_model.blocks.0.out.diff": difference}, file)
    assert torch.equal(whole(reader(str(file)).products, "stack.0.final", 8, 6), difference)
    save_file({"diffusion_model.blocks.0.out.diff": difference.T.contiguous()}, file)
    assert "blocks.0.out is [6, 8], and that layer is [8, 6]" in refused(reader, file)
    save_file({"blocks.0.norm.diff": torch.ones(8), **peft()("blocks.0.out", *products(LAYERS)["blocks.0.out"])}, file)
    assert "whole differences of what is no linear layer of this model (blocks.0.norm.diff)" in refused(reader, file)
    half = {"blocks.0.out.diff": difference, "blocks.0.out.lora_A.weight": torch.ones(4, 6)}
    for both in (half, {**half, "blocks.0.out.lora_B.weight": torch.ones(8, 4)}):
        save_file(both, file)
        assert "are no one difference" in refused(reader, file)


def test_half_a_product_and_whole_weights_are_refused(reader: Reader, tmp_path: Path) -> None:
    save_file({"blocks.0.to_q.lora_A.weight": torch.zeros(4, 8)}, tmp_path / "half.safetensors")
    assert "without the other half" in refused(reader, tmp_path / "half.safetensors")
    save_file({"blocks.0.to_q.weight": torch.zeros(6, 8)}, tmp_path / "whole.safetensors")
    assert "1 tensors that are not of low-rank products" in refused(reader, tmp_path / "whole.safetensors")


def test_numbers_that_are_none_are_refused(reader: Reader, tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", LAYERS, lambda n, down, up: peft()(n, down * float("nan"), up))
    assert "NaN or infinite" in refused(reader, file)


@pytest.mark.parametrize(
    ("dtype", "large", "alpha", "said"),
    [
        (torch.float16, 1e6, 4.0, "float16 has no room for (over 6.6e+04, with its alpha); use another --dtype"),
        (torch.bfloat16, 3.4e38, 8.0, "bfloat16 has no room for (over 3.4e+38, with its alpha); use an adapter"),
        (torch.float32, 1e30, 1e30, "float32 has no room for"),
    ],
)
def test_numbers_that_are_too_large_for_the_format_of_a_layer_are_refused(
    tmp_path: Path, dtype: torch.dtype, large: float, alpha: float, said: str
) -> None:
    def style(name: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
        return with_alpha(torch.tensor(alpha))(name, down, up.sign() * large)

    file = write(tmp_path / "a.safetensors", LAYERS, style)
    assert said in refused(reader_of(tmp_path / "other", dtype), file)


def test_whole_numbers_are_no_weights(reader: Reader, tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", LAYERS, lambda n, down, up: peft()(n, down.to(torch.int8), up))
    assert "number format I8" in refused(reader, file)


def test_a_damaged_file_is_refused(reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"no tensors")
    assert "damaged or cut short" in refused(reader, tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("no json", "no settings"),
        ('["a"]', "no settings"),
        ('{"transformer.lora_alpha": "8"}', "lora_alpha='8'"),
        ('{"transformer.lora_alpha": true}', "lora_alpha=True"),
        ('{"transformer.lora_alpha": -1e7}', "no number up to 1e+06"),
        ('{"lora_alpha": "8"}', "lora_alpha='8'"),
        ('{"transformer.lora_alpha": NaN}', "lora_alpha=nan"),
        ('{"transformer.lora_alpha": 1e999}', "lora_alpha=inf"),
        ('{"transformer.lora_alpha": 1' + "0" * 400 + "}", "no number up to"),
        ('{"transformer.alpha_pattern": ["blocks"]}', "alpha_pattern="),
        ('{"transformer.alpha_pattern": {"blocks": null}}', "alpha_pattern="),
        ('{"transformer.alpha_pattern": {"(": 3}}', "is no pattern"),
    ],
)
def test_settings_that_make_no_sense_are_refused(reader: Reader, tmp_path: Path, settings: str, said: str) -> None:
    file = write(tmp_path / "a.safetensors", LAYERS, metadata={"lora_adapter_metadata": settings})
    assert said in (found := refused(reader, file)) and "again" in found
    assert found.count(str(tmp_path)) == 1  # as whoever asked called it


def test_settings_of_dora_are_refused_by_its_name(reader: Reader, tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.safetensors", LAYERS, metadata={"lora_adapter_metadata": '{"transformer.use_dora": true}'}
    )
    assert "its settings say that it is DoRA; only adapters of low-rank products" in refused(reader, file)


def with_alpha(alpha: Tensor) -> Style:
    return lambda name, down, up: {**peft("")(name, down, up), f"{name}.alpha": alpha.clone()}


@pytest.mark.parametrize("alpha", [torch.tensor(8), torch.tensor([8.0]), torch.tensor(8.0, dtype=torch.bfloat16)])
def test_an_alpha_is_one_number_of_any_format(reader: Reader, tmp_path: Path, alpha: Tensor) -> None:
    found = reader(str(write(tmp_path / "a.safetensors", LAYERS, with_alpha(alpha)))).products
    assert torch.allclose(whole(found, "stack.0.final", 8, 6), expected(factor=2.0)[1], atol=1e-6)


@pytest.mark.parametrize("alpha", [torch.tensor([8.0, 8.0]), torch.zeros(0), torch.tensor(True)])
def test_what_is_not_one_number_is_no_alpha(reader: Reader, tmp_path: Path, alpha: Tensor) -> None:
    assert "alpha" in refused(reader, write(tmp_path / "a.safetensors", LAYERS, with_alpha(alpha)))


def test_names_that_a_terminal_would_obey_are_written_out(reader: Reader, tmp_path: Path) -> None:
    save_file({"a\n\x1b[31m.b": torch.zeros(2)}, tmp_path / "a.safetensors")
    assert r"(a\n\x1b[31m.b)" in refused(reader, tmp_path / "a.safetensors")


def test_what_is_no_file_of_an_adapter_is_refused_by_its_name(tmp_path: Path) -> None:
    for name in ("a.pt", "a.gguf", "one.safetensors", "two.safetensors"):
        (tmp_path / name).write_bytes(b"")
    for source, said in (
        ("a.pt", "is a pickle"),
        ("a.gguf", "is no [*].safetensors file"),
        ("b.safetensors", "is no file or folder"),
        ("", "is a folder with 2 adapters"),
    ):
        with pytest.raises(RequestError, match=said):
            find_file(str(tmp_path / source))
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    for source in ("a" * 300, "loop.safetensors", "nul\0"):
        for folder in (None, tmp_path):
            with pytest.raises(RequestError, match="cannot be looked up"):
                find_file(str(tmp_path / source), folder)
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(RequestError, match="is a folder with no"):
        find_file(str(folder))
    (folder / "gone.safetensors").symlink_to("nowhere")
    with pytest.raises(RequestError, match=r"folder/gone\.safetensors is no file"):
        find_file(str(folder))


@pytest.mark.parametrize(
    "source", ["../out.safetensors", "link.safetensors", "{}/out.safetensors", "deep/../../out.safetensors", "deep"]
)
def test_with_a_folder_nothing_outside_of_it_is_there(tmp_path: Path, source: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    inside, outside = write(home / "in.safetensors", LAYERS), write(tmp_path / "out.safetensors", LAYERS)
    (home / "deep").mkdir()
    for link in ("link.safetensors", "deep/link.safetensors"):
        (home / link).symlink_to(outside)
    assert find_file("in.safetensors", home) == inside
    with pytest.raises(RequestError, match="is not inside of the folder"):
        find_file(source.format(tmp_path), home)


def test_a_bundled_adapter_is_found_by_its_name_and_one_that_there_is_not_is_told_which_there_are() -> None:
    assert find_file("omnimuse/shapes/night").is_file()
    for source, said in (
        ("omnimuse/shapes/day", "is not bundled with omnimuse; there are .*omnimuse/shapes/night"),
        ("omnimuse/nothing/night", "is not bundled with omnimuse$"),
        ("other/shapes/night", "is no file or folder"),
        ("omnimuse/shapes", "is no file or folder"),
        ("omnimuse/shapes/night/deep", "is no file or folder"),
    ):
        with pytest.raises(RequestError, match=said):
            find_file(source)


def test_a_file_that_changes_has_another_stamp(tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", LAYERS)
    before = stamp(str(file))
    assert stamp(str(tmp_path / "." / "a.safetensors")) == before
    write(file, LAYERS, rank=2)
    assert stamp(str(file)) != before


# -- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "found"),
    [
        ("a.b.lora_A.weight", Named("a.b", "down")),
        ("a.b.lora_B.weight", Named("a.b", "up")),
        ("a_b.lora_up.weight", Named("a_b", "up")),
        ("a.processor.qkv_lora1.down.weight", Named("a.processor.qkv_lora1", "down")),
        ("a.processor.proj_lora.up.weight", Named("a.processor.proj_lora", "up")),
        ("a.to_q.lora_linear_layer.up.weight", Named("a.to_q", "up")),
        ("a_b.alpha", Named("a_b", "alpha")),
        ("a.b.weight", None),
    ],
)
def test_a_name_tells_the_role_of_a_tensor(tensor: str, found: Named | None) -> None:
    assert named(tensor) == found


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("transformer.a.b", Layer("transformer", "a.b")),
        ("transformer_2.a.b", Layer("transformer_2", "a.b")),
        ("text_encoder.a", Layer("text_encoder", "a")),
        ("a.b", Layer("", "a.b")),
        ("transformer", Layer("", "transformer")),
        ("text_encoder", Layer("", "text_encoder")),
        ("lora_te1_a_b", Layer("text_encoder", "a_b", flat=True)),
        ("lora_te_a_b", Layer("text_encoder", "a_b", flat=True)),
        ("lora_unet_a_b", Layer("", "a_b", flat=True)),
        ("base_model.model.a.b", Layer("", "a.b")),
    ],
)
def test_a_name_tells_whose_layer_it_is(name: str, found: Layer) -> None:
    assert layer_of(name, {"transformer": "Net", "text_encoder": "CLIPTextModel"}) == found


ONE = {"transformer": "Net", "image_encoder": "CLIPVisionModel", "text_encoder": "T5EncoderModel"}
TWO = {"transformer": "Net", "text_encoder_2": "T5EncoderModel", "text_encoder": "CLIPTextModel"}
THREE = {
    "text_encoder_3": "T5EncoderModel",
    "text_encoder_2": "CLIPTextModelWithProjection",
    "text_encoder": "CLIPTextModelWithProjection",
}
OTHER = {"transformer": "Net", "text_encoder": "Gemma2Model"}
T5 = [(ONE, "text_encoder"), (TWO, "text_encoder_2"), (THREE, "text_encoder_3")]


@pytest.mark.parametrize(
    ("begins", "components"),
    [
        ("lora_te_", [(each, "text_encoder") for each in (ONE, TWO, THREE, OTHER)]),
        ("lora_te1_", [(each, "text_encoder") for each in (ONE, TWO, THREE, OTHER)]),
        ("lora_te2_", [(each, "text_encoder_2") for each in (ONE, TWO, THREE)]),
        ("lora_te3_", T5),
        ("text_encoders.clip_l.transformer.", [(TWO, "text_encoder"), (THREE, "text_encoder")]),
        ("text_encoders.clip_g.transformer.", [(THREE, "text_encoder_2")]),
        (
            "text_encoders.t5xxl.transformer.",
            [(ONE, "text_encoder"), (TWO, "text_encoder_2"), (THREE, "text_encoder_3")],
        ),
        ("text_encoders.gemma2_2b.transformer.", [(OTHER, "text_encoder")]),
    ],
)
def test_trainers_name_text_encoders_by_their_kind(begins: str, components: list[tuple[dict[str, str], str]]) -> None:
    flat = begins.startswith("lora_")
    for known, component in components:
        assert layer_of(f"{begins}a.b", known) == Layer(component, "a.b", flat=flat)
