"""Language models of classes that no family here knows: transformers' own modules write, with our rows and memories."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from omnimuse.ar.kv import Decoder, Reading
from omnimuse.core.config import CompileConfig, Config, ModelConfig, ParallelConfig, QuantConfig
from omnimuse.core.errors import ConfigError, ModelError
from omnimuse.core.params import DiffusionParams, make_params
from omnimuse.core.request import Ask
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.loader.tensors import construct
from omnimuse.models.library_text.spec import longest
from omnimuse.models.library_text.transformer import LibraryDecoder
from omnimuse.worker.explain import explain
from tests.checkpoints.library_text import EVERY, build, facts
from tests.checkpoints.wishes import Writer
from tests.invariants import test_writing
from tests.invariants.conftest import config
from tests.invariants.test_writing import run, tokens
from tests.once import Once
from tests.turns import in_turns


@pytest.fixture(scope="module", params=in_turns(EVERY, "Llama", lambda writer: writer.kind))
def writer(request: pytest.FixtureRequest) -> Writer:
    found: Writer = request.param
    return found


@pytest.fixture(scope="module")
def teller(writer: Writer) -> Writer:
    return writer


def test_what_is_written_in_company_is_what_the_library_writes_alone(
    writer: Writer, folder: Path, engine: Engine
) -> None:
    test_writing.test_what_is_written_in_company_is_what_the_reference_writes_alone(writer, folder, engine)


def test_a_beginning_that_was_read_before_changes_nothing(writer: Writer, folder: Path, engine: Engine) -> None:
    test_writing.test_a_beginning_that_was_read_before_is_not_read_again_and_changes_nothing(writer, folder, engine)


def network_of(engine: Engine) -> Decoder:
    found = engine.runner.pipeline.ctx.network("model")
    assert isinstance(found, Decoder)
    return found


@torch.inference_mode()
def read(network: Decoder, texts: Sequence[Tensor], *, together: bool) -> list[Tensor]:
    """What comes behind each text: read in two pieces, then with a token behind it."""
    memories = [network.memory(len(text) + 1, torch.device("cpu")) for text in texts]
    half = [len(text) // 2 for text in texts]
    rounds = [
        [Reading(text[:end].tolist(), 0, kv) for text, end, kv in zip(texts, half, memories, strict=True)],
        [Reading(text[end:].tolist(), end, kv) for text, end, kv in zip(texts, half, memories, strict=True)],
        [Reading([7], len(text), kv) for text, kv in zip(texts, memories, strict=True)],
    ]
    found: list[Tensor] = []
    for rows in rounds:
        found += network(rows) if together else [each for row in rows for each in network([row])]
    return found


def test_company_changes_no_bit_of_what_is_predicted(engine: Engine) -> None:
    """Texts that windows end in, of equal lengths and others."""
    random = torch.Generator().manual_seed(1)
    texts = [torch.randint(5, 200, (length,), generator=random) for length in (37, 150, 150, 211, 70)]
    network = network_of(engine)
    if network.uneven:
        pytest.skip("it is not promised")
    alone, company = (read(network, texts, together=together) for together in (False, True))
    for number, (own, shared) in enumerate(zip(alone, company, strict=True)):
        assert torch.equal(own, shared), number


def test_without_a_generation_config_a_text_ends_with_what_the_config_says(once: Once, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(once.folder(EVERY[0].name, EVERY[0].build), tmp_path / "copy"))
    (folder / "generation_config.json").unlink()
    wanted = Ask("a red circle", make_params(DiffusionParams(seed=3), {"temperature": 0, "max_tokens": 9}))
    engine = start(config(folder))
    [whole] = run(engine, wanted)
    engine.close()
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | {"eos_token_id": tokens(whole)[3]}))
    engine = start(config(folder))
    [found] = run(engine, wanted)
    engine.close()
    assert tokens(found) == tokens(whole)[: tokens(whole).index(tokens(whole)[3]) + 1]
    assert found.written[0].reason == "stop"


@pytest.mark.parametrize(
    ("chosen", "what"),
    [
        ({"compile": CompileConfig("blocks")}, "compile=blocks"),
        ({"parallel": ParallelConfig(tensor=2)}, "tensor=2"),
        ({"parallel": ParallelConfig(pipe=2)}, "pipe=2"),
    ],
)
def test_what_is_done_to_blocks_of_ours_is_refused(once: Once, chosen: dict[str, Any], what: str) -> None:
    folder = once.folder(EVERY[0].name, EVERY[0].build)
    with pytest.raises(ConfigError, match=f"{what}.* is not there for model, whose blocks are run by transformers"):
        explain(Config(ModelConfig(str(folder), device="cpu"), **chosen))


@pytest.mark.parametrize(
    ("quantize", "why"),
    [
        ("int8", "quantize int8 cannot be: model has no linear layers in blocks; leave it out"),
        ("model=int4", "no 'model' with linear layers in blocks; no component has; leave it out"),
    ],
)
def test_a_class_whose_blocks_have_no_linear_layers_is_not_packed(once: Once, quantize: str, why: str) -> None:
    [folder] = [once.folder(each.name, each.build) for each in EVERY if each.kind == "GPT2"]
    with pytest.raises(ConfigError, match=why):
        explain(Config(ModelConfig(str(folder), device="cpu"), quantize=QuantConfig.of(quantize)))


SMALL = {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "Mamba": ({}, "remembers more than keys and values"),
    "Jamba": ({}, "remembers more than keys and values"),
    "Qwen3Next": ({}, "remembers more than keys and values"),
    "Lfm2": ({"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}, "has layers of other kinds"),
    "Bloom": ({}, "does not attend through the library's registry"),
    "Llama4": ({}, "has layers of other kinds"),
    "Roberta": ({}, "lets its tokens see others in a way of its own"),
    "Qwen3Moe": (SMALL, "has weights, as experts do, that the library joins"),
    "MiniCPM3": (SMALL, "has keys and values of different sizes"),
    "Glm4Moe": (SMALL, "keeps some of its weights in float32"),
    "Gemma3n": (SMALL | {"num_kv_shared_layers": 1}, "has layers that share what others remember"),
    "DiffLlama": (SMALL, "has layers that attend more than once"),
    "Fuyu": ({}, "has parts besides a language model"),
    "Gemma2": (SMALL | {"num_attention_heads": "many"}, "is not made of its config.json by transformers"),
    "Sorcerer": ({}, "is not a class of transformers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_class_that_cannot_be_given_our_rows_is_refused_by_its_name(name: str) -> None:
    changes, why = REFUSED[name]
    given = {"architectures": [f"{name}ForCausalLM"], **changes}
    with pytest.raises(ModelError, match=f"{name}ForCausalLM.*({why})"):
        construct(partial(LibraryDecoder.from_config, given))


def test_layers_that_say_otherwise_than_their_mask_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class whose attention would not be told of the window that it was trained with, or of more than is known."""
    from transformers.models.mistral import modeling_mistral

    given = facts("Mistral", 300) | {"architectures": ["MistralForCausalLM"]}
    decoder = construct(partial(LibraryDecoder.from_config, given))
    assert {layer.sight.window for layer in decoder.asked} == {40}
    site = modeling_mistral.MistralAttention
    with monkeypatch.context() as told:
        told.setattr(site, "forward", partialmethod(site.forward, sinks=1))
        with pytest.raises(ModelError, match="has attention with sinks"):
            construct(partial(LibraryDecoder.from_config, given))
    whole = modeling_mistral.create_sliding_window_causal_mask
    monkeypatch.setattr(modeling_mistral, "create_sliding_window_causal_mask", modeling_mistral.create_causal_mask)
    with pytest.raises(ModelError, match="has a window of 40 tokens in its layers, and None in its mask"):
        construct(partial(LibraryDecoder.from_config, given))
    odd = partial(whole, and_mask_function=lambda *places: True)
    monkeypatch.setattr(modeling_mistral, "create_sliding_window_causal_mask", odd)
    with pytest.raises(ModelError, match="lets its tokens see others in a way of its own"):
        construct(partial(LibraryDecoder.from_config, given))


def test_where_frequencies_change_with_the_length_no_text_is_longer() -> None:
    assert longest({"max_position_embeddings": 512}) == 512
    assert longest({"n_positions": 512}) == 512
    turning = {"rope_type": "longrope", "original_max_position_embeddings": 128}
    assert longest({"max_position_embeddings": 512, "rope_parameters": turning}) == 128
    assert longest({"max_position_embeddings": 512, "rope_parameters": {"full_attention": turning}}) == 128
    old = {"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 64}
    assert longest({"max_position_embeddings": 512, **old}) == 64


def test_a_class_with_products_of_its_own_is_not_promised_to_be_the_same_in_company(tmp_path: Path) -> None:
    folder = build(tmp_path / "gpt2", "GPT2")
    tier = next(choice for choice in explain(config(folder)) if choice.name == "tier")
    assert tier.value == "fast" and "products of Conv1D are the library's own" in tier.reason
