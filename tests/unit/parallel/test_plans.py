"""How networks are cut: what each rank holds, how little all hold alike, and what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from omnimuse.ar.kv import Decoder
from omnimuse.attention.layer import Attention
from omnimuse.attention.layout import Layout
from omnimuse.core.config import Config, ModelConfig, OffloadConfig, ParallelConfig, QuantConfig, ScheduleConfig
from omnimuse.core.errors import ConfigError, ModelError
from omnimuse.core.plans import Columns, Cut, Cutting, Grouped, Rows, Slices, Widths
from omnimuse.layers.network import Network
from omnimuse.layers.stack import Block, BlockStack
from omnimuse.loader.tensors import construct
from omnimuse.models import REGISTRY
from omnimuse.parallel.mesh import Mesh
from omnimuse.parallel.pipe import portions, split
from omnimuse.parallel.pipe import share_blocks as share_out
from omnimuse.parallel.sequence import bind
from omnimuse.parallel.shard import share_blocks as keep_parts
from omnimuse.parallel.tensor import share_weights
from omnimuse.worker.build import SHAPES, begin, load, offload, run
from omnimuse.worker.explain import explain

PLACES = {
    component.network: spec.family
    for spec in REGISTRY.specs()
    for component in spec.components.values()
    if component.network and not component.network.startswith("omnimuse.components") and spec.medium != "text"
}
"""Where the networks of all families are. Those that write are refused several ranks when an engine starts."""


def published(place: str) -> Network | None:
    """The network as the defaults of its configuration have it, without memory; None for what runs once or writes."""
    module, _, name = place.partition(":")
    found = getattr(import_module(module), name)
    shared = issubclass(found, Network) and not issubclass(found, Decoder)
    return construct(lambda: found.from_config({})) if shared else None


def size(network: nn.Module) -> int:
    return sum(each.numel() for each in network.parameters())


@pytest.mark.crossed
@pytest.mark.parametrize("ranks", [2, 8])
@pytest.mark.parametrize("place", PLACES)
def test_a_rank_holds_little_more_than_its_share_of_a_published_network(place: str, ranks: int) -> None:
    network = published(place)
    if network is None:
        pytest.skip("it does not run at every step, or writes, and is whole on every rank")
    whole = size(network)
    cuts = share_weights(network, Mesh.planned(ParallelConfig(tensor=ranks), ranks - 1).axis("tensor"))
    assert size(network) / whole < 1 / ranks + 0.02
    assert all(network.get_parameter(name).shape[cut.dim] == cut.held for name, cut in cuts.items())


class ToyBlock(Block[Any]):
    """Three heads of 4 and an MLP of 7."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(12, 36 + 14)
        self.core = Attention(3, 4)
        self.out = nn.Linear(12 + 7, 12)


class Toy(Network):
    """A network of one block, with any plan."""

    packing = "varlen"

    def __init__(self, plan: Mapping[str, Cutting], make: Callable[[], Block[Any]] = ToyBlock) -> None:
        super().__init__()
        self.stack = BlockStack([make()])
        self._plan = plan

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Toy:
        return cls({})

    def forward(self, rows: Any, memories: Any = None) -> list[Tensor]:
        return []

    def stacks(self) -> dict[str, BlockStack]:
        return {"blocks": self.stack}

    def plan(self) -> Mapping[str, Cutting]:
        return self._plan


PLAN = {"stack.*.qkv": Columns(queries=1, keys=2, others=2), "stack.*.out": Rows(queries=1, others=1)}


def cut(
    plan: Mapping[str, Cutting], ranks: int, rank: int = 0, make: Callable[[], Block[Any]] = ToyBlock
) -> tuple[Toy, dict[str, Slices]]:
    with torch.device("meta"):
        network = Toy(plan, make)
    return network, share_weights(network, Mesh.planned(ParallelConfig(tensor=ranks), rank).axis("tensor"))


def test_heads_and_widths_that_do_not_divide_are_shared_out_whole_and_once() -> None:
    held: list[int] = []
    for rank, heads in enumerate((2, 1)):
        network, slices = cut(PLAN, 2, rank)
        assert network.stack.blocks()[0].core.num_heads == heads
        assert slices["stack.0.qkv.weight"] == slices["stack.0.qkv.bias"]
        held += [place for span in slices["stack.0.qkv.weight"].spans for place in range(*span)]
        inputs = slices["stack.0.out.weight"]
        assert (inputs.dim, inputs.whole) == (1, 19) and "stack.0.out.bias" not in slices
        assert inputs.held == heads * 4 + (4, 3)[rank]
    assert sorted(held) == list(range(50))


def test_what_a_span_of_the_whole_has_here_is_found_wherever_it_lies() -> None:
    slices = Slices(0, 20, ((2, 5), (10, 12), (15, 20)))
    assert slices.held == 10
    assert list(slices.meet(0, 20)) == [((2, 5), 0), ((10, 12), 3), ((15, 20), 5)]
    assert list(slices.meet(4, 11)) == [((0, 1), 2), ((6, 7), 3)]
    assert list(slices.meet(5, 10)) == []


def test_parts_differ_by_one_at_most_and_leave_nothing_out() -> None:
    for count in range(12):
        for of in (1, 2, 3, 5):
            spans = [Cut(at, of).span(count) for at in range(of)]
            assert [place for span in spans for place in range(*span)] == list(range(count))
            assert max(b - a for a, b in spans) - min(b - a for a, b in spans) <= 1
    with pytest.raises(ValueError, match="no part 2 of 2"):
        Cut(2, 2)


def test_every_rank_has_some_queries_and_the_keys_that_they_share() -> None:
    for keys, shared, of in product((1, 2, 3), (1, 2, 4), range(1, 13)):
        heads, held = Grouped(keys * shared, keys), list[int]()
        if of > heads.queries:
            continue
        spans = [heads.spans(Cut(at, of)) for at in range(of)]
        for (start, stop), (first, last) in spans:
            assert start < stop and first < last, "nobody is without"
            assert {query // shared for query in range(start, stop)} == set(range(first, last))
            assert of <= keys or last == first + 1
            held += range(start, stop)
        assert held == list(range(heads.queries))
        assert heads.fewest(of) == min(stop - start for (start, stop), _ in spans)


class ToyHeads(ToyBlock):
    """Four heads of queries that share two of keys, and norms over all."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(12, 32), nn.Linear(16, 12)
        self.core = Attention(4, 4, key_heads=2)
        self.norm_q, self.norm_k = nn.RMSNorm(16), nn.RMSNorm(8)


def test_more_ranks_than_heads_of_keys_have_the_same_ones_unless_a_norm_is_over_all() -> None:
    plan: dict[str, Cutting] = {"stack.*.qkv": Columns(queries=1, keys=2), "stack.*.out": Rows(queries=1)}
    spans = []
    for rank in range(3):
        network, slices = cut(plan, 3, rank, ToyHeads)
        core = network.stack.blocks()[0].core
        assert (core.num_heads, core.key_heads, core.most_heads) == ((1, 1, 2)[rank], 1, 1)
        spans.append(slices["stack.0.qkv.weight"].spans)
    assert spans == [((0, 4), (16, 20), (24, 28)), ((4, 8), (16, 20), (24, 28)), ((8, 16), (20, 24), (28, 32))]
    cut(plan | {"stack.*.norm_q": Widths(queries=1)}, 3, 0, ToyHeads)
    with pytest.raises(ConfigError, match="this model has 2 heads to share out"):
        cut(plan | {"stack.*.norm_k": Widths(keys=1)}, 3, 0, ToyHeads)


def test_more_ranks_than_heads_are_refused_with_the_most_that_there_may_be() -> None:
    with pytest.raises(ConfigError, match=r"tensor=4 cannot be: this model has 3 heads .* use tensor=3 or less"):
        cut(PLAN, 4)
    with pytest.raises(ConfigError, match=r"3 heads .* over tensor=2 leave 1, .* use ulysses=1 or less, or ring"):
        bind(Toy(PLAN), Mesh.planned(ParallelConfig(tensor=2, ulysses=2)), "transformer")


def test_a_network_without_a_plan_and_blocks_that_mix_tokens_are_refused() -> None:
    with pytest.raises(ConfigError, match="Toy does not say how its weights are cut; use ulysses or ring"):
        cut({}, 2)
    network = Toy(PLAN)
    network.stack[0].mixes_tokens = True
    with pytest.raises(ConfigError, match="mix tokens outside attention; use tensor"):
        bind(network, Mesh.planned(ParallelConfig(ring=2)), "transformer")


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"stack.*.absent": Rows(others=1)}, "names 'stack.*.absent', and nothing there is called so"),
        ({"stack.*.out": Rows(others=2)}, "parts that are not its 19 places"),
        ({"stack.*.qkv": Columns(queries=1, keys=2)}, "parts that are not its 50 places"),
    ],
)
def test_a_plan_that_does_not_fit_its_network_is_refused(plan: Mapping[str, Cutting], words: str) -> None:
    with pytest.raises(ModelError) as caught:
        cut(plan, 2)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("sizes", "ranks", "spans"),
    [
        ([1] * 7, 3, [(0, 2), (2, 5), (5, 7)]),
        ([5, 1, 1, 1], 2, [(0, 1), (1, 4)]),
        ([1, 1, 1, 5], 2, [(0, 3), (3, 4)]),
        ([9, 1, 1], 3, [(0, 1), (1, 2), (2, 3)]),
        ([1, 1, 9], 3, [(0, 1), (1, 2), (2, 3)]),
    ],
)
def test_blocks_are_split_by_their_bytes_and_every_rank_has_one(
    sizes: list[int], ranks: int, spans: list[tuple[int, int]]
) -> None:
    assert split(sizes, ranks) == spans


def test_rows_of_one_token_go_round_in_as_many_portions_as_there_are_ranks() -> None:
    assert portions(Layout((1,) * 5), 2) == [[0, 1, 2], [3, 4]]
    assert portions(Layout((1,)), 2) == [[0]]
    assert portions(Layout((7, 7, 7)), 2) == [[0], [1], [2]] == portions(Layout((1, 7, 7)), 2)


def test_a_stack_shorter_than_the_pipe_is_refused_with_the_longest_that_fits() -> None:
    with pytest.raises(ConfigError, match="has 1 blocks, and every rank needs one; use pipe=1 or less"):
        share_out(Toy(PLAN), Mesh.planned(ParallelConfig(pipe=2)).axis("pipe"), {})


@pytest.mark.parametrize("tensor", [1, 2])
def test_parts_of_blocks_on_all_ranks_are_the_blocks_also_of_those_that_were_cut_before(tensor: int) -> None:
    held: Counter[tuple[str, int]] = Counter()
    parallel = ParallelConfig(tensor=tensor, ring=3, shard=3)
    for rank in range(parallel.ranks):
        mesh = Mesh.planned(parallel, rank)
        with torch.device("meta"):
            network = Toy(PLAN)
        shapes = {name: each.shape for name, each in network.named_parameters()}
        cuts = share_weights(network, mesh.axis("tensor")) if tensor > 1 else {}
        _, cuts = keep_parts(network, mesh.axis("sequence"), cuts, {})
        for name, parameter in network.named_parameters():
            assert parameter.shape[cuts[name].dim] == cuts[name].held
            assert cuts[name].whole == shapes[name][cuts[name].dim]
            held.update((name, place) for span in cuts[name].spans for place in range(*span))
    whole_on_both = "stack.0.out.bias"  # the tensor axis has it on every rank
    assert {count for (name, _), count in held.items() if name != whole_on_both} == {1}
    assert len(held) == 50 + 50 + 12 + (12 if tensor == 1 else 19)


def read(folder: Path, parallel: ParallelConfig, scheme: str, rank: int) -> dict[str, nn.Parameter]:
    """What a rank has of a network whose layers are packed by `scheme`, read by that rank alone."""
    config = replace(asked(folder, parallel), quantize=QuantConfig.of(scheme))
    under = begin(config, Mesh.planned(parallel, rank))
    with run(under, (*SHAPES, offload, load)).resources:
        return dict(under.networks["transformer"].named_parameters())


@pytest.mark.parametrize("scheme", ["int8", "int4", "int8-dynamic"])
def test_parts_of_blocks_whose_layers_are_packed_are_read_as_such(z_image_folder: Path, scheme: str) -> None:
    whole = read(z_image_folder, ParallelConfig(), scheme, 0)
    parts = [read(z_image_folder, ParallelConfig(ulysses=2, shard=2), scheme, rank) for rank in range(2)]
    cut = {name for name, each in whole.items() if len(parts[0][name]) < len(each)}
    assert any(name.endswith("weight_packed") for name in cut) and any(name.endswith("_scale") for name in cut)
    for name, tensor in whole.items():
        both = [part[name] for part in parts]
        assert torch.equal(torch.cat(both) if name in cut else both[1], tensor), name


def asked(folder: Path, parallel: ParallelConfig) -> Config:
    return Config(ModelConfig(str(folder), dtype="float32", device="cpu"), parallel=parallel)


def test_explain_tells_what_a_rank_holds_and_how_its_tokens_are_shared(z_image_folder: Path) -> None:
    choices = {
        (choice.topic, choice.name): choice
        for choice in explain(asked(z_image_folder, ParallelConfig(tensor=2, ring=2)))
    }
    assert choices["ranks", "transformer, tokens"].value == "ulysses=1 x ring=2"
    assert "on every rank alike" in choices["ranks", "transformer, tensor"].value
    assert choices["ranks", "wait"].value == "1800 s"
    assert choices["batching", "tier"].value == "invariant"


@pytest.mark.parametrize(
    ("arch", "has"), [("ZImagePipeline", "a part of each row"), ("LTX2Pipeline", "all of each row")]
)
def test_explain_tells_whether_tokens_are_shared_out(arch: str, has: str, tiny: Callable[[str], Path]) -> None:
    told = {choice.name: choice for choice in explain(asked(tiny(arch), ParallelConfig(ulysses=2)))}
    assert told["transformer, tokens"].reason.startswith(f"asked for: every rank has {has}")


def test_explain_tells_who_works_together_and_what_every_rank_holds_of_what(z_image_folder: Path) -> None:
    parallel = ParallelConfig(tensor=2, pipe=2)
    told = {choice.name: choice for choice in explain(asked(z_image_folder, parallel))}
    assert (told["mesh"].value, told["mesh"].reason) == ("4 ranks", "pipe=2 x tensor=2")
    assert told["along pipe"].value == "0 2, 1 3" and told["along tensor"].value == "0 1, 2 3"
    assert "along ring" not in told
    shares = [told[f"weights of rank {rank}"].reason for rank in range(4)]
    held = [dict(reversed(part.split(" of ")) for part in share.split(", ")) for share in shares]
    assert all(float(each["transformer"]) < 0.75 for each in held)  # refiners and embeddings of a tiny one weigh much
    assert sum(float(each["transformer"]) for each in held) >= 1.0
    assert told["weights of rank 0"].value == told["all weights"].value
    assert [each["vae"] for each in held] == ["1.00"] * 4
    assert [each.get("text_encoder") for each in held].count("1.00") == 1
    assert not [choice for choice in explain(asked(z_image_folder, ParallelConfig())) if choice.name == "mesh"]


def test_what_does_not_go_with_shared_work_is_refused_before_any_rank_is_there(z_image_folder: Path) -> None:
    chosen = asked(z_image_folder, ParallelConfig(ulysses=2))
    kept = replace(chosen, parallel=ParallelConfig(ulysses=2, shard=2))
    with pytest.raises(ConfigError, match="both say where blocks wait"):
        explain(replace(kept, offload=OffloadConfig("layers")))
    elastic = replace(chosen, parallel=ParallelConfig(ulysses=2, elastic=True))
    with pytest.raises(ConfigError, match="elastic cannot be with tier=invariant: how many ranks add up"):
        explain(replace(elastic, schedule=ScheduleConfig(tier="invariant")))
    with pytest.raises(ConfigError, match="the guidance of this model has 2 branches; use cfg=2"):
        explain(replace(chosen, parallel=ParallelConfig(cfg=3)))
