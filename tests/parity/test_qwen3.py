"""Our Qwen3 text encoder against transformers', with tiny random weights.

Every weight is redrawn. Ours is loaded from files that transformers saved, by the rules for published checkpoints.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

from omnimuse.components.qwen3 import RULES, Qwen3Encoder
from omnimuse.core.errors import ModelError
from omnimuse.loader.tensors import DtypePolicy, construct
from omnimuse.loader.weights import load_weights, randomise
from tests.distance import distance
from tests.watch import idle

THETA = 10_000.0
TINY = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 100,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "rope_parameters": {"rope_type": "default", "rope_theta": THETA},
}

IDS = torch.randint(0, 300, (2, 90), generator=torch.Generator().manual_seed(1))
MASKS = {
    "no mask": None,
    "a mask that hides nothing": torch.ones(2, 90, dtype=torch.long),
    "pads after": (torch.arange(90) < torch.tensor([[90], [31]])).long(),
    "pads before": (torch.arange(90) >= torch.tensor([[0], [44]])).long(),
}


def saved(folder: Path, kind: Any = Qwen3Model, **changes: Any) -> Any:
    """A reference with every weight redrawn, as it lies in `folder`, too."""
    model = kind(Qwen3Config(**TINY | changes))
    randomise(model, 3, "text_encoder", DtypePolicy(torch.float32), "cpu")
    model.save_pretrained(folder)
    return model


def config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> Qwen3Encoder:
    encoder = construct(partial(Qwen3Encoder.from_config, config(folder)))
    load_weights(encoder, folder, RULES, DtypePolicy(dtype), "cpu")
    return encoder


def states(encoder: Any, ids: Tensor = IDS, mask: Tensor | None = None) -> list[Tensor]:
    return list(encoder(ids, attention_mask=mask, output_hidden_states=True).hidden_states)


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("shared", [4, 2, 1])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_every_hidden_state_equals_the_reference_with_and_without_pads(
    tmp_path: Path, shared: int, mask: Tensor | None
) -> None:
    reference = saved(tmp_path, num_key_value_heads=shared)
    theirs, ours = states(reference, mask=mask), states(loaded(tmp_path), mask=mask)
    assert len(ours) == len(theirs) == 5
    seen = torch.ones_like(IDS, dtype=torch.bool)
    if mask is not None and not mask[:, 0].all():
        seen = mask.bool()  # what pads in front become is nobody's business, as long as it stays finite
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.isfinite().all()
        assert distance(mine[seen], other[seen]) < 1e-5


@pytest.mark.parametrize("tokens", [1, 512])
def test_short_and_long_prompts_equal_the_reference(tmp_path: Path, tokens: int) -> None:
    ids = torch.randint(0, 300, (1, tokens), generator=torch.Generator().manual_seed(tokens))
    reference = saved(tmp_path)
    pairs = zip(states(loaded(tmp_path), ids), states(reference, ids), strict=True)
    assert max(distance(mine, other) for mine, other in pairs) < 1e-5


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_half_precision_follows_the_reference(tmp_path: Path, mask: Tensor | None) -> None:
    saved(tmp_path)
    reference = Qwen3Model.from_pretrained(tmp_path, dtype=torch.bfloat16)
    ours = states(loaded(tmp_path, torch.bfloat16), mask=mask)
    seen = torch.ones_like(IDS, dtype=torch.bool) if mask is None else mask.bool()
    for mine, other in zip(ours, states(reference, mask=mask), strict=True):
        assert mine.dtype == torch.bfloat16
        assert distance(mine[seen], other[seen]) < 1e-2


@pytest.mark.parametrize("tied", [True, False])
def test_the_names_of_a_whole_language_model_are_understood(tmp_path: Path, tied: bool) -> None:
    reference = saved(tmp_path, Qwen3ForCausalLM, tie_word_embeddings=tied)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert all(name.startswith(("model.", "lm_head.")) for name in names)
    assert ("lm_head.weight" in names) == (not tied)
    assert distance(states(loaded(tmp_path))[-1], states(reference.model)[-1]) < 1e-5


def test_the_older_spelling_of_the_rotary_base_means_the_same(tmp_path: Path) -> None:
    saved(tmp_path)
    new = config(tmp_path)
    old = {key: value for key, value in new.items() if key != "rope_parameters"} | {"torch_dtype": "bfloat16"}
    for scaling in ({}, {"rope_scaling": None}, {"rope_scaling": {"type": "default"}}):
        older = old | {"rope_theta": THETA} | scaling
        assert Qwen3Encoder.from_config(older).config == Qwen3Encoder.from_config(new).config


def test_the_configuration_of_the_published_4b_model_is_understood() -> None:
    published = {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2560,
        "initializer_range": 0.02,
        "intermediate_size": 9728,
        "max_position_embeddings": 40960,
        "max_window_layers": 36,
        "model_type": "qwen3",
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    }
    encoder = construct(partial(Qwen3Encoder.from_config, published))
    assert encoder.embed_tokens.weight.is_meta
    assert sum(weight.numel() for weight in encoder.parameters()) == 4_022_468_096


def test_layers_that_nobody_takes_do_not_run(tmp_path: Path) -> None:
    saved(tmp_path)
    encoder = loaded(tmp_path)
    whole = states(encoder)
    encoder.layers[3].self_attn.o_proj.weight.fill_(float("nan"))
    hidden = encoder(IDS).hidden_states
    assert torch.equal(hidden[-2], whole[-2])
    assert hidden[-1].isnan().all()
    with pytest.raises(IndexError):
        hidden[5]


def test_every_weight_matters(tmp_path: Path) -> None:
    saved(tmp_path)
    encoder = loaded(tmp_path)
    assert not idle(encoder, lambda: states(encoder)[-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_bias": True}, "attention_bias=True is not supported; only False is"),
        ({"use_sliding_window": True, "sliding_window": 64}, "use_sliding_window=True is not supported"),
        ({"layer_types": ["full_attention"] * 3 + ["sliding_attention"]}, "layer_types=.*is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported; only 'silu' is"),
        ({"model_type": "qwen3_moe"}, "model_type='qwen3_moe' is not supported"),
        ({"num_experts": 8}, "unknown key 'num_experts'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "rope_parameters=.*'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling=.*'linear'"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_parameters": None}, "no rope_theta"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3"),
        ({"head_dim": None}, "no head_dim"),
    ],
)
def test_a_configuration_of_another_variant_is_refused_with_its_value(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    saved(tmp_path)
    with pytest.raises(ModelError, match=message):
        Qwen3Encoder.from_config(config(tmp_path) | change)
