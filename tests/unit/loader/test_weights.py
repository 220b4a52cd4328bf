"""Streaming safetensors into networks, and filling them with random numbers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from omnimuse.compat.weights_file import read_file, shapes_in
from omnimuse.core.errors import ModelError
from omnimuse.core.plans import Slices
from omnimuse.loader.headers import opened
from omnimuse.loader.rules import Fuse, Rename
from omnimuse.loader.tensors import DtypePolicy, construct
from omnimuse.loader.weights import load_weights, randomise

F32 = DtypePolicy(torch.float32)
FILE = "diffusion_pytorch_model.safetensors"
RULES = (Rename(r"^old\.", "layers."), Fuse(("to_q.weight", "to_k.weight"), "to_qk.weight"))


class Layer(nn.Module):
    """A fused projection, a norm, and frequencies that no file stores."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_qk = nn.Linear(width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.register_buffer("freqs", 1.0 / 10 ** torch.arange(0, 1, 0.25), persistent=False)


class Net(nn.Module):
    """Two layers, stored statistics, a counter, and a head tied to the embedding."""

    def __init__(self, width: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))
        self.head = nn.Linear(width, 6, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("codes", torch.zeros(3, width))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


def stored(width: int = 4, layers: int = 2) -> dict[str, Tensor]:
    """What a file of a `Net` holds, in the names before the rules."""
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (6, width), "codes": (3, width)}
    for i in range(layers):
        shapes |= {f"old.{i}.to_{x}.weight": (width, width) for x in "qk"}
        shapes |= {f"old.{i}.norm.{x}": (width,) for x in ("weight", "bias")}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return tensors | {"count": torch.tensor(7)}


def expected(tensors: dict[str, Tensor], layers: int = 2) -> dict[str, Tensor]:
    """The state dict that `tensors` should become, worked out by hand."""
    made = {name: tensors[name] for name in ("embed.weight", "codes", "count")}
    made["head.weight"] = tensors["embed.weight"]
    for i in range(layers):
        made[f"layers.{i}.to_qk.weight"] = torch.cat([tensors[f"old.{i}.to_{x}.weight"] for x in "qk"])
        made |= {f"layers.{i}.norm.{x}": tensors[f"old.{i}.norm.{x}"] for x in ("weight", "bias")}
    return made


def write(folder: Path, tensors: dict[str, Tensor], name: str = FILE) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / name)
    return folder


def refusal(folder: Path, net: nn.Module | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        load_weights(net or construct(Net), folder, RULES, F32, "cpu")
    return str(caught.value)


def test_a_loaded_network_equals_the_reference_state(tmp_path: Path) -> None:
    net = construct(Net)
    tensors = stored()
    report = load_weights(net, write(tmp_path, tensors), RULES, F32, "cpu")
    state = net.state_dict()
    assert state.keys() == expected(tensors).keys()
    for name, tensor in expected(tensors).items():
        assert torch.equal(state[name], tensor), name
    assert (report.tensors, report.bytes) == (len(tensors), sum(t.nbytes for t in tensors.values()))
    assert report.files == (tmp_path / FILE,)


def test_shards_are_read_as_one_and_parts_of_a_fuse_may_lie_in_two(tmp_path: Path) -> None:
    tensors = stored()
    left = {name: tensor for name, tensor in tensors.items() if "to_q" in name}
    write(tmp_path, left, "model-00002-of-00002.safetensors")
    write(tmp_path, {n: t for n, t in tensors.items() if n not in left}, "model-00001-of-00002.safetensors")
    net = construct(Net)
    load_weights(net, tmp_path, RULES, F32, "cpu")
    for name, tensor in expected(tensors).items():
        assert torch.equal(net.state_dict()[name], tensor), name


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    net = construct(Net)
    load_weights(net, write(tmp_path, stored()), RULES, F32, "cpu")
    assert net.head.weight is net.embed.weight


def test_nothing_stays_on_meta_and_computed_buffers_are_right(tmp_path: Path) -> None:
    net = construct(Net)
    assert net.layers[0].norm.weight.is_meta
    load_weights(net, write(tmp_path, stored()), RULES, DtypePolicy(torch.bfloat16), "cpu")
    assert not any(t.is_meta for t in [*net.parameters(), *net.buffers()])
    for layer in net.layers:
        assert torch.equal(layer.freqs, Layer(4).freqs)
        assert layer.freqs.dtype == torch.float32


def test_loaded_networks_are_in_eval_mode_without_gradients(tmp_path: Path) -> None:
    net = construct(Net)
    load_weights(net, write(tmp_path, stored()), RULES, F32, "cpu")
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())


def test_weights_do_not_hang_on_the_file_they_came_from(tmp_path: Path) -> None:
    net = construct(Net)
    tensors = stored()
    load_weights(net, write(tmp_path, tensors), RULES, F32, "cpu")
    (tmp_path / FILE).write_bytes(bytes((tmp_path / FILE).stat().st_size))
    assert torch.equal(net.embed.weight, tensors["embed.weight"])


def test_the_dtype_policy_keeps_named_parts_in_float32(tmp_path: Path) -> None:
    net = construct(Net)
    load_weights(net, write(tmp_path, stored()), RULES, DtypePolicy(torch.bfloat16, ("norm",)), "cpu")
    dtypes = {name: tensor.dtype for name, tensor in net.state_dict().items()}
    assert dtypes["layers.1.norm.bias"] == torch.float32
    assert dtypes["layers.1.to_qk.weight"] == dtypes["codes"] == torch.bfloat16
    assert dtypes["count"] == torch.int64


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("norm1", "blocks.3.norm1.weight", True),
        ("blocks.*.norm1", "blocks.3.norm1.weight", True),
        ("norm?", "blocks.3.norm1.weight", True),
        ("norm", "blocks.3.norm1.weight", False),
        ("blocks.norm1", "blocks.3.norm1.weight", False),
    ],
)
def test_a_pattern_matches_whole_pieces_of_a_name(pattern: str, name: str, matches: bool) -> None:
    assert (DtypePolicy(torch.bfloat16, (pattern,)).of(name) == torch.float32) is matches


def test_a_pattern_that_looks_like_a_regex_is_refused() -> None:
    with pytest.raises(ValueError, match="no regex"):
        DtypePolicy(torch.bfloat16, (r"^norm\d+$",))


def test_missing_and_unexpected_tensors_are_named(tmp_path: Path) -> None:
    tensors = stored()
    tensors["stray"] = tensors.pop("codes")
    del tensors["old.1.to_k.weight"]
    message = refusal(write(tmp_path, tensors))
    assert "2 missing: layers.1.to_k.weight (part of layers.1.to_qk.weight), codes" in message
    assert "1 unexpected: stray" in message


def test_a_mis_shaped_tensor_is_refused_with_both_shapes(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, stored() | {"codes": torch.zeros(5, 4)}))
    assert "codes is [5, 4], config.json asks for [3, 4]" in message


def test_weights_of_a_wider_model_are_recognised(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, stored(width=8)))
    assert "a size is 8 where config.json says 4: the weights seem to belong to a wider model" in message


def test_weights_of_a_shallower_model_are_recognised(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, stored()), construct(lambda: Net(layers=4)))
    assert "lack blocks 2 to 3 of layers: they seem to belong to a shallower model" in message


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def write_index(folder: Path, owners: dict[str, str]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": owners}))


@pytest.mark.parametrize("stale", [torch.zeros(3, 4), torch.zeros(7)])
@pytest.mark.parametrize("owner", [0, 1])
def test_a_tensor_in_two_shards_is_taken_from_the_one_that_the_index_names(
    tmp_path: Path, owner: int, stale: Tensor
) -> None:
    tensors = stored()
    codes = tensors.pop("codes")
    write(tmp_path, tensors | {"codes": codes if owner == 0 else stale}, SHARDS[0])
    write(tmp_path, {"codes": codes if owner == 1 else stale}, SHARDS[1])
    write_index(tmp_path, {**dict.fromkeys(tensors, SHARDS[0]), "codes": SHARDS[owner]})
    net = construct(Net)
    load_weights(net, tmp_path, RULES, F32, "cpu")
    assert torch.equal(net.codes, codes)


@pytest.mark.parametrize("index", [False, True])
def test_a_tensor_in_two_shards_is_refused_where_nothing_says_which_counts(tmp_path: Path, index: bool) -> None:
    write(tmp_path, stored(), SHARDS[0])
    write(tmp_path, {"codes": torch.zeros(7)}, SHARDS[1])
    if index:
        write_index(tmp_path, {"embed.weight": SHARDS[0], "count": SHARDS[1]} | {"count": SHARDS[0], "x": SHARDS[1]})
    message = refusal(tmp_path)
    assert f"{tmp_path / SHARDS[0]} and {tmp_path / SHARDS[1]} both hold the tensor codes" in message
    assert ("does not name it" if index else "there is no index") in message
    assert "Remove the shard that does not belong here" in message


def test_an_index_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    tensors = stored()
    write(tmp_path, tensors, SHARDS[0])
    write(tmp_path, {"spare": torch.zeros(1)}, SHARDS[1])
    write_index(tmp_path, {**dict.fromkeys(tensors, SHARDS[0]), "spare": SHARDS[1], "codes": SHARDS[1]})
    message = refusal(tmp_path)
    assert f"says that codes is in {SHARDS[1]}, which does not hold it, and {SHARDS[0]} does" in message
    assert "get the checkpoint again" in message


def test_what_an_index_names_and_no_shard_holds_is_missing_only_where_it_is_wanted(tmp_path: Path) -> None:
    tensors = stored()
    write(tmp_path, tensors, SHARDS[0])
    write_index(tmp_path, {**dict.fromkeys(tensors, SHARDS[0]), "spare": SHARDS[0]})
    load_weights(construct(Net), tmp_path, RULES, F32, "cpu")
    del tensors["codes"]
    write(tmp_path, tensors, SHARDS[0])
    assert "1 missing: codes" in refusal(tmp_path)


def test_of_a_tied_tensor_stored_twice_the_first_name_is_read(tmp_path: Path) -> None:
    tensors = stored()
    net = construct(Net)
    load_weights(net, write(tmp_path, tensors | {"head.weight": torch.ones(6, 4)}), RULES, F32, "cpu")
    assert torch.equal(net.embed.weight, tensors["embed.weight"])
    assert net.head.weight is net.embed.weight


def test_a_second_copy_of_a_tied_tensor_must_fit_too(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, stored() | {"head.weight": torch.ones(7, 4)}))
    assert "head.weight is [7, 4], config.json asks for [6, 4]" in message


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("codes", torch.ones(3, 4, dtype=torch.int32), "codes is I32, this network takes floats of 16 to 64 bits"),
        ("codes", torch.ones(3, 4, dtype=torch.bool), "codes is BOOL, this network takes floats of 16 to 64 bits"),
        ("count", torch.tensor(7.0), "count is F32, this network takes int64"),
        ("count", torch.tensor(7, dtype=torch.int8), "count is I8, this network takes int64"),
        (
            "embed.weight",
            torch.ones(6, 4).to(torch.float8_e4m3fn),
            "embed.weight is F8_E4M3, this network takes floats of 16 to 64 bits",
        ),
    ],
)
def test_numbers_of_another_kind_are_refused_and_not_cast(tmp_path: Path, name: str, tensor: Tensor, said: str) -> None:
    message = refusal(write(tmp_path, stored() | {name: tensor}))
    assert "1 of another number format" in message
    assert said in message
    assert ("look like quantized weights" in message) is ("floats" in said)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16])
def test_floats_of_other_widths_are_cast(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = stored()
    net = construct(Net)
    load_weights(net, write(tmp_path, tensors | {"codes": tensors["codes"].to(dtype)}), RULES, F32, "cpu")
    assert net.codes.dtype == torch.float32
    assert torch.equal(net.codes, tensors["codes"].to(dtype).float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("read", ["old.1.norm.weight", "old.0.to_k.weight", "codes"])
def test_a_second_copy_of_what_is_read_is_told_and_not_refused(
    tmp_path: Path, read: str, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = stored()
    net = construct(Net)
    write(tmp_path, tensors, SHARDS[0])
    write(tmp_path, {"norm_copy.weight": tensors[read].to(dtype)}, SHARDS[1])
    load_weights(net, tmp_path, RULES, F32, "cpu")
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in expected(tensors).items())
    told = f"{tmp_path} has tensors that nothing reads, second copies of what is read: norm_copy.weight (of {read})"
    assert told in caplog.messages


def test_of_two_tensors_for_one_place_the_second_may_only_be_a_copy(tmp_path: Path) -> None:
    tensors = stored()
    load_weights(
        construct(Net),
        write(tmp_path, tensors | {"layers.0.norm.bias": tensors["old.0.norm.bias"].clone()}),
        RULES,
        F32,
        "cpu",
    )
    message = refusal(write(tmp_path, tensors | {"layers.0.norm.bias": tensors["old.1.norm.bias"] + 1}))
    assert "1 unexpected: old.0.norm.bias (goes to layers.0.norm.bias, as layers.0.norm.bias does)" in message


def test_what_is_left_over_and_no_copy_is_refused_beside_copies(tmp_path: Path) -> None:
    tensors = stored()
    copy, other = {"a_copy": tensors["codes"].clone()}, {"b_other": tensors["codes"] + 1}
    assert "1 unexpected: b_other" in refusal(write(tmp_path, tensors | copy | other))
    assert "2 unexpected: a_other, b_copy" in refusal(
        write(tmp_path, tensors | {"b_copy": copy["a_copy"], "a_other": other["b_other"]})
    )


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_tensor_of_one_value_is_no_copy_of_another_that_has_it(tmp_path: Path, value: float) -> None:
    """Every fresh norm holds ones: a network with a norm that ours has not would look like a copy."""
    tensors = stored() | {"old.0.norm.weight": torch.full((4,), value), "norm_out.weight": torch.full((4,), value)}
    assert "1 unexpected: norm_out.weight" in refusal(write(tmp_path, tensors))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["codes", "old.1.to_k.weight"])
def test_weights_that_are_no_numbers_are_refused_with_their_name(tmp_path: Path, name: str, value: float) -> None:
    tensors = stored()
    tensors[name] = tensors[name].clone()
    tensors[name][1, 2] = value
    message = refusal(write(tmp_path, tensors))
    assert f"{tmp_path / FILE}: 1 of the {tensors[name].numel()} numbers of {name} are NaN or infinite" in message
    assert "get the checkpoint again" in message


def test_large_numbers_whose_sum_is_infinite_are_numbers(tmp_path: Path) -> None:
    large = torch.full((3, 4), 6e4, dtype=torch.float16)
    assert large.sum().isinf()
    net = construct(Net)
    load_weights(net, write(tmp_path, stored() | {"codes": large}), RULES, F32, "cpu")
    assert torch.equal(net.codes, large.float())


def test_weights_arrive_in_the_order_that_the_network_asks_for(tmp_path: Path) -> None:
    net = construct(lambda: nn.Conv2d(4, 6, 3)).to(memory_format=torch.channels_last)
    tensors = {"weight": torch.randn(6, 4, 3, 3), "bias": torch.randn(6)}
    load_weights(net, write(tmp_path, tensors), (), DtypePolicy(torch.bfloat16), "cpu")
    assert net.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(net.weight, tensors["weight"].bfloat16())


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_a_truncated_file_is_refused_with_its_name(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path, stored()) / FILE
    path.write_bytes(path.read_bytes()[:keep])
    message = refusal(tmp_path)
    assert f"{path} is damaged or cut short" in message
    assert "Delete this file, then get the checkpoint again" in message


def test_a_file_that_is_no_safetensors_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"version https://git-lfs.github.com/spec/v1\n" * 3)
    assert f"{tmp_path / FILE} is damaged" in refusal(tmp_path)


def test_a_missing_shard_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    write(tmp_path, stored(), "model-00001-of-00002.safetensors")
    assert "lacks 1 of its 2 weight files" in refusal(tmp_path)


def test_a_network_built_on_meta_by_hand_is_refused_for_its_empty_buffers(tmp_path: Path) -> None:
    with torch.device("meta"):
        net = Net()
    assert "layers.0.freqs" in refusal(write(tmp_path, stored()), net)


def test_building_a_network_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    net = construct(Net)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(net.layers[0].freqs, Layer(4).freqs)


class Loose(nn.Module):
    """Keeps a tensor as a plain attribute, where loading cannot reach it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.arange(4)


def test_a_tensor_outside_buffers_that_stayed_on_meta_is_refused() -> None:
    with pytest.raises(ModelError, match=r"without content: table; .*register_buffer"):
        randomise(construct(Loose), 0, "net", F32, "cpu")


def dummy(seed: int = 0, component: str = "net") -> dict[str, Tensor]:
    net = construct(lambda: Net(width=64))
    randomise(net, seed, component, F32, "cpu")
    return net.state_dict()


def test_random_weights_depend_on_seed_component_and_name_alone() -> None:
    first, again = dummy(), dummy()
    assert all(torch.equal(first[name], again[name]) for name in first)
    for other in (dummy(seed=1), dummy(component="other")):
        assert not torch.equal(first["codes"], other["codes"])
    assert not torch.equal(first["layers.0.to_qk.weight"], first["layers.1.to_qk.weight"])


def test_random_weights_have_sizes_that_keep_activations_finite() -> None:
    state = dummy()
    assert 0.7 < state["layers.0.to_qk.weight"].std() * 64**0.5 < 1.3
    norm, bias = state["layers.0.norm.weight"], state["layers.0.norm.bias"]
    assert 0 < (norm - 1).abs().max() <= 0.31
    assert 0 < bias.abs().max() < 0.25
    assert state["count"] == 0


def test_random_weights_keep_ties_dtypes_and_computed_buffers() -> None:
    net = construct(Net)
    randomise(net, 0, "net", DtypePolicy(torch.bfloat16, ("norm",)), "cpu")
    assert net.head.weight is net.embed.weight
    assert net.embed.weight.dtype == torch.bfloat16
    assert net.layers[0].norm.weight.dtype == torch.float32
    assert torch.equal(net.layers[0].freqs, Layer(4).freqs)


CUTS = {
    "layers.0.to_qk.weight": Slices(0, 8, ((1, 3), (5, 7))),
    "layers.1.to_qk.weight": Slices(1, 4, ((0, 1), (3, 4))),
    "layers.0.norm.bias": Slices(0, 4, ((2, 4),)),
    "embed.weight": Slices(0, 6, ((4, 6),)),
}
"""Shares of what two tensors of the files make together, along that and across it; of a tensor and of a tied one."""


def shared_net() -> Net:
    net = construct(Net)
    for name, cut in CUTS.items():
        owner, _, key = name.rpartition(".")
        shape = list(net.get_parameter(name).shape)
        shape[cut.dim] = cut.held
        setattr(net.get_submodule(owner), key, nn.Parameter(torch.empty(shape, device="meta")))
    net.head.weight = net.embed.weight
    return net


def share(name: str, tensor: Tensor) -> Tensor:
    cut = CUTS.get(name.replace("head", "embed"))
    return tensor if cut is None else torch.cat([tensor.narrow(cut.dim, a, b - a) for a, b in cut.spans], cut.dim)


def test_a_share_of_a_network_gets_its_share_of_the_numbers_and_no_more_is_read(tmp_path: Path) -> None:
    tensors, net, whole = stored(), shared_net(), construct(Net)
    folder = write(tmp_path / "net", tensors)
    report = load_weights(net, folder, RULES, F32, "cpu", CUTS)
    for name, tensor in expected(tensors).items():
        assert torch.equal(net.state_dict()[name], share(name, tensor)), name
    left_out = 4 * (16 + 16 + 2 + 16)
    assert report.bytes == load_weights(whole, folder, RULES, F32, "cpu").bytes - left_out


def test_a_share_of_a_network_gets_its_share_of_the_random_numbers_of_the_whole() -> None:
    net, whole = shared_net(), construct(Net)
    randomise(net, 0, "net", F32, "cpu", CUTS)
    randomise(whole, 0, "net", F32, "cpu")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(net.state_dict()[name], share(name, tensor)), name


def test_a_share_of_a_tensor_of_another_shape_is_refused_with_the_whole_shapes(tmp_path: Path) -> None:
    folder = write(tmp_path / "net", stored() | {"old.0.norm.bias": torch.zeros(5)})
    with pytest.raises(ModelError, match=r"layers.0.norm.bias|old.0.norm.bias"):
        load_weights(shared_net(), folder, RULES, F32, "cpu", CUTS)


def test_a_file_whose_name_is_no_text_is_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff") / "model.safetensors"
    path.parent.mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").rename(path)
    with pytest.raises(ModelError, match=r"is not UTF-8 text; rename it$"):
        opened(path).__enter__()
    for read in (read_file, shapes_in):
        with pytest.raises(ModelError, match=r"is not UTF-8 text; rename it$"):
            read(path)
