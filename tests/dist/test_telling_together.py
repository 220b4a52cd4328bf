"""What writes, speaks or answers on ranks that share out its weights tells what it tells on one: every family.

All that a family is asked for, by chance and not, is in flight together, in one start of the ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from omnimuse.ar.kv import Reading, Sizes
from omnimuse.components.decoder import DenseDecoder
from omnimuse.core.config import CompileConfig, Config, HostConfig, ParallelConfig, QuantConfig
from omnimuse.core.errors import ConfigError
from omnimuse.core.output import Result
from omnimuse.core.params import DiffusionParams, TokenParams, make_params
from omnimuse.core.plans import Cut, Slices
from omnimuse.core.request import Ask
from omnimuse.engine.local import start
from omnimuse.parallel.mesh import TENSOR, Mesh
from omnimuse.parallel.tensor import SummedLinear
from omnimuse.quant.linear import PackedRows, QuantizedLinear
from omnimuse.quant.schemes import SCHEMES
from omnimuse.worker.build import SHAPES, begin, build, run
from omnimuse.worker.connect import connect
from omnimuse.worker.explain import explain
from omnimuse.worker.packed_shares import SummedPacked
from tests.checkpoints import bagel, glm_image, library_text, qwen3, qwen3_omni, qwen3_tts, qwen25_omni
from tests.checkpoints.adapters import layers_telling, peft, write
from tests.checkpoints.families import ANSWERERS, SPEAKERS, WRITERS
from tests.checkpoints.wishes import Family, Speaker, Writer
from tests.distance import distance
from tests.invariants import test_answering, test_speaking, test_writing
from tests.invariants.conftest import Subject, config, drain, results, submit, with_params
from tests.invariants.test_quantized import FAR
from tests.once import Once
from tests.ranks import play

pytestmark = [pytest.mark.dist, pytest.mark.timeout(600)]

TWO = ParallelConfig(tensor=2)
FLOATS = QuantConfig()
AS_THEY_ARE = CompileConfig()


@dataclass(frozen=True)
class Teller:
    """A tiny checkpoint, and what it is asked for."""

    name: str
    build: Callable[[Path], Path]
    asks: Callable[[Path], list[Ask]]


def _written(writer: Writer, folder: Path) -> list[Ask]:
    """By chance and not, and one that wears an adapter."""
    asks = [test_writing.ask(writer, index, max_tokens=10, min_tokens=0) for index in range(3)]
    file = folder.with_name(f"{folder.name}.safetensors")
    adapter = write(file, layers_telling(folder), peft("base_model.model."))
    return [*asks, with_params(asks[0], loras=[f"{adapter}:0.8"])]


def _spoken(speaker: Speaker, folder: Path) -> list[Ask]:
    return [*test_speaking.asks(speaker)[:2], test_speaking.asks(speaker, "latent")[0]]


def _answered(folder: Path) -> list[Ask]:
    return [test_answering.ask(0), test_answering.ask(1, temperature=0)]


def _drawn(family: Family, folder: Path) -> list[Ask]:
    """The first, and the last, of which GLM-Image must write the codes: others have them given."""
    return [Subject(family, folder).ask(index) for index in (0, -1)]


[GLM] = [replace(family, build=partial(glm_image.build, keys=2)) for family in glm_image.FAMILIES]
WIDE = {
    "Qwen2_5OmniForConditionalGeneration": partial(qwen25_omni.build, wide=True),
    "Qwen3OmniMoeForConditionalGeneration": partial(qwen3_omni.build, wide=True),
}
"""Those whose tiny checkpoint has as many heads as ranks share out, where the usual one has fewer."""
HEADS = {"num_key_value_heads": 2}
SHARED = tuple(each for each in WRITERS if each.arch != library_text.ARCH)
"""Those that write whose blocks are ours, so that ranks can share them."""
TELLERS = (
    *(Teller(f"writes-{each.name}", WIDE.get(each.name, each.build), partial(_written, each)) for each in SHARED),
    *(
        Teller(f"speaks-{each.name}", partial(qwen3_tts.build, kind=each.kind, talker=HEADS), partial(_spoken, each))
        for each in SPEAKERS
    ),
    *(Teller(f"answers-{each.name}", WIDE.get(each.name, each.build), _answered) for each in ANSWERERS),
    Teller("draws-GlmImagePipeline", GLM.build, partial(_drawn, GLM)),
)
[BAGEL], [LONE] = bagel.ALLROUNDERS, glm_image.FAMILIES
CROWDED = (
    *((Teller(f"writes-{each.name}", each.build, partial(_written, each)), 3) for each in SHARED if not each.kind),
    *((Teller(f"speaks-{each.name}", each.build, partial(_spoken, each)), 2) for each in SPEAKERS),
    *((Teller(f"answers-{each.name}", each.build, _answered), 2) for each in ANSWERERS),
    *((Teller(f"draws-{each.name}", each.build, partial(_drawn, each)), 2) for each in (LONE, BAGEL)),
)
"""More ranks than heads of keys and values, in what reads and writes or in what speaks: some have the same."""


def told(
    folder: Path,
    asks: list[Ask],
    parallel: ParallelConfig,
    packed: QuantConfig = FLOATS,
    compiled: CompileConfig = AS_THEY_ARE,
) -> dict[str, Tensor]:
    """The tokens, sounds and pictures that are told, and then by no chance; SystemExit on ranks that follow."""
    engine = start(replace(shared(folder, parallel), quantize=packed, compile=compiled))
    ids = submit(engine, *asks)
    found = spread(results(engine, drain(engine, 3000), ids))
    if sure := likeliest(asks):
        ids = submit(engine, *sure)
        events, _ = test_writing.briefly(engine)
        found |= {f"by no chance, {name}": each for name, each in spread(results(engine, events, ids)).items()}
    assert not engine.runner.forwards.retries
    engine.close()
    return found


def likeliest(asks: Sequence[Ask]) -> list[Ask]:
    """Those that write or speak, by no chance and whatever was written before: texts come in strides where there is
    time for many tokens.
    """
    found, sure = list[Ask](), {"temperature": 0.0, "repetition_penalty": 1.0}
    for ask in asks:
        extra = ask.params.extra if isinstance(ask.params, DiffusionParams) else None
        if isinstance(extra, TokenParams) or (isinstance(extra, Mapping) and "max_tokens" in extra):
            found.append(replace(ask, params=make_params(ask.params, sure)))
    return found


def spread(made: Sequence[Result]) -> dict[str, Tensor]:
    """The tokens, sounds and pictures of results, by the number of each."""
    found = dict[str, Tensor]()
    for number, result in enumerate(made):
        for note in result.written:
            found[f"{number}.tokens"] = torch.tensor(note.tokens)
        for medium, tensors in result.tensors.items():
            if isinstance(tensors[0], Tensor):
                found[f"{number}.{medium}"] = tensors[0]
        for part in chain.from_iterable(result.parts):
            if part.medium == "audio":
                found[f"{number}.sound"] = torch.from_numpy(part.data.samples)
    return found


def check(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """That tokens are the same, and sounds and pictures but for the last bits."""
    assert found.keys() == expected.keys() and found
    for name, one in expected.items():
        assert found[name].shape == one.shape, name
        if not one.is_floating_point():
            assert torch.equal(found[name], one), name
        assert float((found[name].double() - one.double()).norm()) <= 1e-5 * float(one.double().norm()), name


def shared(folder: Path, parallel: ParallelConfig) -> Config:
    return config(folder, parallel=parallel, host=HostConfig(threads=1))


Tell = Callable[[Path, list[Ask], ParallelConfig, QuantConfig], dict[str, Tensor]]


def on_rank(
    rank: int,
    parallel: ParallelConfig,
    folder: Path,
    asks: list[Ask],
    file: Path,
    packed: QuantConfig = FLOATS,
    tell: Tell = told,
) -> None:
    """Rank 0 drives an engine, the others follow it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}.meeting", rank=rank, world_size=parallel.ranks)
    save_file({name: each.contiguous() for name, each in tell(folder, asks, parallel, packed).items()}, file)


@pytest.mark.crossed
@pytest.mark.slow
@pytest.mark.shows("tensor", "company")
@pytest.mark.parametrize("teller", TELLERS, ids=lambda teller: teller.name)
def test_two_ranks_tell_what_one_does(teller: Teller, once: Once, tmp_path: Path) -> None:
    folder = once.folder(f"shared {teller.name}", teller.build)
    asks, file = teller.asks(folder), tmp_path / "told.safetensors"
    play(on_rank, TWO, folder, asks, file, ranks=2)
    check(load_file(file), told(folder, asks, ParallelConfig()))


@pytest.mark.crossed
@pytest.mark.slow
@pytest.mark.shows("tensor")
@pytest.mark.parametrize(("teller", "ranks"), CROWDED, ids=lambda each: each.name if isinstance(each, Teller) else "")
def test_more_ranks_than_heads_of_keys_tell_what_one_does(
    teller: Teller, ranks: int, once: Once, tmp_path: Path
) -> None:
    folder = once.folder(f"crowded {teller.name}", teller.build)
    asks, file = teller.asks(folder), tmp_path / "told.safetensors"
    play(on_rank, ParallelConfig(tensor=ranks), folder, asks, file, ranks=ranks)
    check(load_file(file), told(folder, asks, ParallelConfig()))


PACKED = tuple(
    pytest.param(teller, ranks, scheme, marks=pytest.mark.shows("tensor", scheme))
    for teller, ranks in CROWDED
    for scheme in (SCHEMES if teller.name.startswith("writes-") else ("int8", "int4"))
    if not scheme.endswith("-dynamic")
)
ROUNDED = tuple(
    pytest.param(teller, ranks, scheme, marks=pytest.mark.shows("tensor", scheme))
    for teller, ranks in CROWDED
    for scheme in SCHEMES
    if teller.name.startswith("writes-") and scheme.endswith("-dynamic")
)


@pytest.mark.crossed
@pytest.mark.slow
@pytest.mark.parametrize(("teller", "ranks", "scheme"), PACKED, ids=lambda each: getattr(each, "name", str(each)))
def test_packed_weights_that_ranks_share_tell_what_those_of_one_do(
    teller: Teller, ranks: int, scheme: str, once: Once, tmp_path: Path
) -> None:
    folder = once.folder(f"crowded {teller.name}", teller.build)
    asks, file, packed = teller.asks(folder), tmp_path / "told.safetensors", QuantConfig({"": scheme})
    play(on_rank, ParallelConfig(tensor=ranks), folder, asks, file, packed, ranks=ranks)
    check(load_file(file), told(folder, asks, ParallelConfig(), packed))


def thought(
    folder: Path, asks: list[Ask], parallel: ParallelConfig, packed: QuantConfig = FLOATS, dtype: str = "float32"
) -> dict[str, Tensor]:
    """What the network makes of the first that it reads of each, by chance; SystemExit on ranks that follow."""
    chosen = shared(folder, parallel)
    engine = start(replace(chosen, model=replace(chosen.model, dtype=dtype), quantize=packed))
    network, found, made = engine.runner.pipeline.ctx.network("model"), dict[str, Tensor](), list[Tensor]()
    network.register_forward_hook(lambda network, given, logits: made.append(logits[0].clone()))
    for number, ask in enumerate(asks):
        submit(engine, replace(ask, params=make_params(ask.params, {"temperature": 1.0})))
        drain(engine)
        found[str(number)] = made[0]
        made.clear()
    engine.close()
    return found


@pytest.mark.crossed
@pytest.mark.slow
@pytest.mark.parametrize(("teller", "ranks", "scheme"), ROUNDED, ids=lambda each: getattr(each, "name", str(each)))
def test_weights_that_round_inputs_and_that_ranks_share_make_nearly_what_floats_make(
    teller: Teller, ranks: int, scheme: str, once: Once, tmp_path: Path
) -> None:
    """A last bit rounds some input otherwise, and from there on all are others: one rank makes others, too."""
    folder = once.folder(f"crowded {teller.name}", teller.build)
    asks, file, packed = teller.asks(folder), tmp_path / "thought.safetensors", QuantConfig({"": scheme})
    play(on_rank, ParallelConfig(tensor=ranks), folder, asks, file, packed, thought, ranks=ranks)
    found, expected = load_file(file), thought(folder, asks, ParallelConfig())
    assert found.keys() == expected.keys() and len(found) == len(asks)
    for name, logits in expected.items():
        assert 0 < distance(found[name], logits) < FAR[scheme]


@pytest.mark.crossed
@pytest.mark.slow
@pytest.mark.shows("tensor", "bfloat16")
@pytest.mark.parametrize(
    ("teller", "ranks"),
    [each for each in CROWDED if each[0].name.startswith("writes-")],
    ids=lambda each: each.name if isinstance(each, Teller) else "",
)
def test_ranks_that_share_weights_make_in_bfloat16_nearly_what_float32_makes(
    teller: Teller, ranks: int, once: Once, tmp_path: Path
) -> None:
    """They add up in another order than one does: a last bit makes another token, by chance."""
    folder = once.folder(f"crowded {teller.name}", teller.build)
    asks, file, tell = teller.asks(folder), tmp_path / "thought.safetensors", partial(thought, dtype="bfloat16")
    play(on_rank, ParallelConfig(tensor=ranks), folder, asks, file, FLOATS, tell, ranks=ranks)
    found, expected = load_file(file), thought(folder, asks, ParallelConfig())
    assert found.keys() == expected.keys() and len(found) == len(asks)
    for name, logits in expected.items():
        assert 0 < distance(found[name], logits) < FAR["fp8"], "which has fewer bits"


def one_layer(rank: int, scheme: str, meeting: Path) -> None:
    """What three ranks make that have some inputs of a layer each is what the whole makes, from the same inputs."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=3)
    axis, (start_, stop) = connect(ParallelConfig(tensor=3)).axis(TENSOR), Cut(rank, 3).span(96)
    columns, packing = Slices(1, 96, ((start_, stop),)), SCHEMES[scheme]
    weights, x = (torch.randn(count, 96, generator=torch.Generator().manual_seed(count)) for count in (40, 5))
    whole = QuantizedLinear(nn.Linear(96, 40, bias=False), packing, torch.float32).to_empty(device="cpu")
    PackedRows(packing, whole.packed, 96).copy_(weights)
    some = SummedLinear(nn.Linear(stop - start_, 40, bias=False), axis)
    part = SummedPacked(some, packing, torch.float32, columns).to_empty(device="cpu")
    PackedRows(packing, part.packed, 96, columns).copy_(weights)
    expected = whole(x)
    assert float((part(x[:, start_:stop]) - expected).norm()) <= 1e-6 * float(expected.norm())


@pytest.mark.parametrize("scheme", ["int8-dynamic", "fp8-dynamic"])
def test_ranks_round_inputs_as_one_does(scheme: str, tmp_path: Path) -> None:
    play(one_layer, scheme, tmp_path / "meeting", ranks=3)


PIPED = (
    *((teller, ParallelConfig(pipe=2)) for teller in TELLERS),
    (Teller(f"draws-{BAGEL.name}", BAGEL.build, partial(_drawn, BAGEL)), ParallelConfig(pipe=2)),
    *(
        pytest.param(teller, ParallelConfig(pipe=2, tensor=2), marks=pytest.mark.shows("pipe", "tensor"))
        for teller in TELLERS
        if teller.name.startswith("answers-")
    ),
    (Teller("overhears", partial(qwen3_omni.build, accepted=2), _answered), ParallelConfig(pipe=3)),
)
"""Of three ranks the second has the layer that a talker overhears, which is whole on all of them."""


@pytest.mark.crossed
@pytest.mark.slow
@pytest.mark.shows("pipe", "company")
@pytest.mark.parametrize(("teller", "parallel"), PIPED, ids=lambda each: getattr(each, "name", str(each)))
def test_ranks_that_have_some_layers_each_tell_what_one_does(
    teller: Teller, parallel: ParallelConfig, once: Once, tmp_path: Path
) -> None:
    folder = once.folder(f"shared {teller.name}", teller.build)
    asks, file = teller.asks(folder), tmp_path / "told.safetensors"
    play(on_rank, parallel, folder, asks, file, ranks=parallel.ranks)
    check(load_file(file), told(folder, asks, ParallelConfig()))


def test_what_is_remembered_of_layers_is_where_they_are(once: Once) -> None:
    folder, parallel, found = once.folder("qwen3", qwen3.build), ParallelConfig(pipe=2), list[Sizes]()
    for rank in range(parallel.ranks):
        under = run(begin(shared(folder, parallel), Mesh.planned(parallel, rank)), SHAPES)
        network = under.networks["model"]
        assert isinstance(network, DenseDecoder)
        found.append(network.sizes)
        assert network.memory(64, torch.device("cpu")).data.shape[0] == network.sizes.layers <= network.most.layers
        under.resources.close()
    layers = len(network.layers)
    assert [each.first for each in found] == [0, found[0].layers] and sum(each.layers for each in found) == layers
    with pytest.raises(ConfigError, match=f"the longest stack of Qwen3Decoder has {layers} blocks"):
        explain(shared(folder, ParallelConfig(pipe=layers + 1)))


def alike(rank: int, ranks: int, folder: Path, meeting: Path) -> None:
    """What every rank makes of the same tokens, a prompt and then one."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    built = build(shared(folder, TWO), connect(TWO))
    network = built.pipeline.ctx.network("model")
    assert isinstance(network, DenseDecoder)
    assert network.sizes.heads == 1, "of two"
    kv = network.memory(64, torch.device("cpu"))
    with torch.inference_mode():
        found = [network([Reading(range(3, 43), 0, kv)])[0], network([Reading([7], 40, kv)])[0]]
    for made in found:
        every = [torch.empty_like(made) for _ in range(ranks)]
        dist.all_gather(every, made)
        assert torch.equal(*every), "to the bit: or they would not choose the same token"
    built.resources.close()


@pytest.mark.slow
def test_every_rank_has_the_same_logits_to_the_bit(once: Once, tmp_path: Path) -> None:
    folder = once.folder("qwen3", qwen3.build)
    play(alike, 2, folder, tmp_path / "meeting", ranks=2)


def test_who_is_cut_and_who_has_too_few_heads_for_that_is_explained(once: Once) -> None:
    folder = once.folder("Qwen3OmniMoeForConditionalGeneration", qwen3_omni.build)
    found = {choice.name: choice for choice in explain(shared(folder, ParallelConfig(tensor=3)))}
    assert "of the weights on rank 0" in found["model, tensor"].value
    assert (found["talker, tensor"].value, found["talker, tensor"].reason.split(" to ")[0]) == (
        "whole on every rank",
        "it has 2 heads",
    )
    with pytest.raises(ConfigError, match="this model has 4 heads to share out"):
        explain(shared(folder, ParallelConfig(tensor=5)))
