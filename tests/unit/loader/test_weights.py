"""Streaming safetensors into networks, and filling them with random numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from omnimuse.core.errors import ModelError
from omnimuse.loader.rules import Fuse, Rename
from omnimuse.loader.tensors import DtypePolicy, construct, construct_unfilled
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


def test_building_an_unfilled_network_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    net = construct_unfilled(Net)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(net.layers[0].freqs, Layer(4).freqs)


class Loose(nn.Module):
    """Keeps a tensor as a plain attribute, where loading cannot reach it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.arange(4)


def test_a_tensor_outside_buffers_that_stayed_on_meta_is_refused(tmp_path: Path) -> None:
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
