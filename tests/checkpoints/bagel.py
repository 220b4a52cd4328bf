"""Tiny random checkpoints of BAGEL, in the layout of the published one: `build(folder)`.

Language model of width 32 (two layers, two heads of 16 that share keys, each with weights for words and weights for
what is drawn), a vision tower of width 24 (two layers are used of the three that its configuration counts), an
autoencoder of 32 channels with factor 8. Pictures have at most 8 patches of 16 pixels a side, and are seen in 5 of 14.
Numbers depend on a tensor's published name alone.

`../data/bagel.safetensors` has, for every wish, what the published code makes of these checkpoints: that of its
repository at commit 056b5fd, with transformers 4.49.0, in float32 on a CPU, seeded with `torch.manual_seed`, its
attention computed by torch's own. The token that it draws beyond the last of a text, and throws away, is drawn by
nobody.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from omnimuse.core.params import DiffusionParams
from tests.checkpoints import parts
from tests.checkpoints.wishes import Family, Wish, photo

KEPT = Path(__file__).parent.parent / "data" / "bagel.safetensors"

WIDTH, INNER, LAYERS, HEADS, SHARED = 32, 48, 2, 2, 1
SEEN_WIDTH, SEEN_INNER, SEEN_LAYERS, SEEN_SIDE = 24, 40, 2, 5
CELLS, PATCH, SIDE = 16, 2, 8
AE_WIDTH = 32
LLM = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": SHARED,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": False,
}
VIT = {
    "model_type": "siglip_vision_model",
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": SEEN_WIDTH,
    "image_size": 14 * SEEN_SIDE,
    "intermediate_size": SEEN_INNER,
    "layer_norm_eps": 1e-6,
    "num_attention_heads": 2,
    "num_channels": 3,
    "num_hidden_layers": SEEN_LAYERS + 1,
    "patch_size": 14,
}
WHOLE = {
    "model_type": "bagel",
    "latent_patch_size": PATCH,
    "max_latent_size": SIDE,
    "vit_max_num_patch_per_side": SEEN_SIDE,
    "timestep_shift": 1.0,
}
AE = {"block_out_channels": [AE_WIDTH] * 4, "layers_per_block": 1, "norm_num_groups": 32}
PREPARING = {
    "vae_transform": {"max_image_size": 16 * SIDE, "min_image_size": 32, "image_stride": 16},
    "vit_transform": {"max_image_size": 14 * SEEN_SIDE, "min_image_size": 28, "image_stride": 14},
}
MARKS = ("<|vision_start|>", "<|vision_end|>")


def _linear(name: str, outputs: int, inputs: int, bias: bool = True) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)


def _norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _language(words: int, heads: int, shared: int, layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    head, model = WIDTH // heads, "language_model.model"
    yield f"{model}.embed_tokens.weight", (words, WIDTH)
    yield "language_model.lm_head.weight", (words, WIDTH)
    for kind in ("", "_moe_gen"):
        yield f"{model}.norm{kind}.weight", (WIDTH,)
        for layer in range(layers):
            at = f"{model}.layers.{layer}"
            yield f"{at}.input_layernorm{kind}.weight", (WIDTH,)
            yield f"{at}.post_attention_layernorm{kind}.weight", (WIDTH,)
            for part, count in (("q", heads), ("k", shared), ("v", shared)):
                yield from _linear(f"{at}.self_attn.{part}_proj{kind}", count * head, WIDTH)
            yield from _linear(f"{at}.self_attn.o_proj{kind}", WIDTH, WIDTH, False)
            yield f"{at}.self_attn.q_norm{kind}.weight", (head,)
            yield f"{at}.self_attn.k_norm{kind}.weight", (head,)
            yield from _linear(f"{at}.mlp{kind}.gate_proj", INNER, WIDTH, False)
            yield from _linear(f"{at}.mlp{kind}.up_proj", INNER, WIDTH, False)
            yield from _linear(f"{at}.mlp{kind}.down_proj", WIDTH, INNER, False)


def _seeing() -> Iterator[tuple[str, tuple[int, ...]]]:
    model, width = "vit_model.vision_model", SEEN_WIDTH
    yield from _linear(f"{model}.embeddings.patch_embedding", width, 3 * 14 * 14)
    yield f"{model}.embeddings.position_embedding.weight", (SEEN_SIDE**2, width)
    for layer in range(SEEN_LAYERS):
        at = f"{model}.encoder.layers.{layer}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"{at}.self_attn.{part}", width, width)
        yield from _norm(f"{at}.layer_norm1", width)
        yield from _norm(f"{at}.layer_norm2", width)
        yield from _linear(f"{at}.mlp.fc1", SEEN_INNER, width)
        yield from _linear(f"{at}.mlp.fc2", width, SEEN_INNER)
    yield from _norm(f"{model}.post_layernorm", width)
    yield from _linear("connector.fc1", WIDTH, width)
    yield from _linear("connector.fc2", WIDTH, WIDTH)
    yield "vit_pos_embed.pos_embed", (SEEN_SIDE**2, WIDTH)


def _drawing() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _linear("vae2llm", WIDTH, CELLS * PATCH**2)
    yield from _linear("llm2vae", CELLS * PATCH**2, WIDTH)
    yield from _linear("time_embedder.mlp.0", WIDTH, 256)
    yield from _linear("time_embedder.mlp.2", WIDTH, WIDTH)
    yield "latent_pos_embed.pos_embed", (SIDE**2, WIDTH)


def _convolution(name: str, outputs: int, inputs: int, side: int = 3) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (outputs, inputs, side, side)
    yield f"{name}.bias", (outputs,)


def _residual(name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    for number in (1, 2):
        yield from _norm(f"{name}.norm{number}", AE_WIDTH)
        yield from _convolution(f"{name}.conv{number}", AE_WIDTH, AE_WIDTH)


def _coding() -> Iterator[tuple[str, tuple[int, ...]]]:
    ends = {"encoder": (3, 2 * CELLS, "down", "downsample", 1), "decoder": (CELLS, 3, "up", "upsample", 2)}
    for half, (before, after, way, change, blocks) in ends.items():
        yield from _convolution(f"{half}.conv_in", AE_WIDTH, before)
        for level in range(4):
            for block in range(blocks):
                yield from _residual(f"{half}.{way}.{level}.block.{block}")
            if level != (3 if way == "down" else 0):
                yield from _convolution(f"{half}.{way}.{level}.{change}.conv", AE_WIDTH, AE_WIDTH)
        yield from _residual(f"{half}.mid.block_1")
        yield from _norm(f"{half}.mid.attn_1.norm", AE_WIDTH)
        for part in ("q", "k", "v", "proj_out"):
            yield from _convolution(f"{half}.mid.attn_1.{part}", AE_WIDTH, AE_WIDTH, 1)
        yield from _residual(f"{half}.mid.block_2")
        yield from _norm(f"{half}.norm_out", AE_WIDTH)
        yield from _convolution(f"{half}.conv_out", after, AE_WIDTH)


def filled(name: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers that depend on the published name alone."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if len(shape) > 1:
        return drawn / drawn[0].numel() ** 0.5
    return 0.1 * drawn + (1.0 if "norm" in name and name.endswith("weight") else 0.0)


def _tensors(shapes: Iterator[tuple[str, tuple[int, ...]]]) -> dict[str, Tensor]:
    return {name: filled(name, shape) for name, shape in shapes}


def build(folder: Path, heads: int = HEADS, shared: int = SHARED, layers: int = LAYERS) -> Path:
    """Writes the checkpoint into `folder` and returns it: its language model has so many heads, of which so many have
    keys of their own, and layers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = parts.qwen_tokenizer()
    tokenizer.add_tokens(list(MARKS), special_tokens=True)
    tokenizer.save_pretrained(folder)
    sizes = {"num_attention_heads": heads, "num_key_value_heads": shared, "num_hidden_layers": layers}
    named = {
        "config.json": WHOLE,
        "llm_config.json": {**LLM, **sizes, "vocab_size": len(tokenizer)},
        "vit_config.json": VIT,
        "ae_config.json": AE,
        "preprocessor_config.json": PREPARING,
    }
    for name, content in named.items():
        (folder / name).write_text(json.dumps(content, indent=1))
    whole = {
        **_tensors(_language(len(tokenizer), heads, shared, layers)),
        **_tensors(_seeing()),
        **_tensors(_drawing()),
    }
    save_file(whole, folder / "ema.safetensors", {"format": "pt"})
    save_file(_tensors(_coding()), folder / "ae.safetensors", {"format": "pt"})
    return folder


def _asked(guidance: float, size: tuple[int, int], seed: int, steps: int = 3, **chosen: Any) -> DiffusionParams:
    """A picture of that height and width."""
    return DiffusionParams(
        num_inference_steps=steps,
        guidance_scale=guidance,
        height=size[0],
        width=size[1],
        seed=seed,
        extra=chosen or None,
    )


THOUGHT = ("text", "image")
WISHES = (
    Wish("a red circle on white", None, _asked(4.0, (32, 48), 7, 5)),
    Wish("one two three " * 60, None, replace(_asked(1.0, (48, 32), 8), flow_shift=2.0)),
    Wish(
        "make it blue",
        None,
        _asked(3.0, (48, 32), 9, picture_scale=2.0, guided_above=0.0, renorm="text_channel"),
        photo(40, 52),
    ),
    Wish("a star left of both", None, _asked(4.0, (32, 32), 10), photo(60, 40), others=(photo(32, 32),)),
    Wish("two green stars", None, _asked(4.0, (32, 32), 11, modalities=THOUGHT, temperature=0.0, max_tokens=12)),
    Wish(
        "a heart",
        None,
        _asked(2.0, (32, 48), 12, modalities=THOUGHT, temperature=0.8, max_tokens=9),
        photo(48, 32),
    ),
)
"""The last two are thought about first, one of them with chance."""

ASKED: tuple[tuple[str, tuple[Image.Image, ...], Mapping[str, Any], int], ...] = (
    ("what is it", (photo(40, 52),), {"temperature": 0.0, "max_tokens": 16}, 1),
    ("one two three " * 60, (photo(60, 40), photo(32, 32)), {"temperature": 0.7, "max_tokens": 12}, 2),
    ("a red circle", (), {"temperature": 1.0, "max_tokens": 10}, 3),
    ("why is it red", (photo(52, 40),), {"temperature": 0.0, "max_tokens": 10, "think": True}, 4),
)
"""What is asked about pictures, how it is answered, and with which seed."""


def _kept() -> dict[str, Tensor]:
    return load_file(KEPT)


def answers() -> list[list[int]]:
    """The tokens that the published code writes for everything in `ASKED`."""
    found = _kept()
    return [found[f"answer.{number}"].tolist() for number in range(len(ASKED))]


def thoughts() -> list[list[int]]:
    """The same of those `WISHES` that are thought about."""
    found = _kept()
    return [found[f"thought.{number}"].tolist() for number in range(len(WISHES)) if f"thought.{number}" in found]


def reference(folder: Path, wishes: Sequence[Wish], output_type: str) -> list[Tensor]:
    """What the published code makes of `WISHES`."""
    found, kind = _kept(), "latents" if output_type == "latent" else "image"
    return [found[f"{kind}.{WISHES.index(wish)}"] for wish in wishes]


ARCH = "BagelForConditionalGeneration"
APART = "makes image and text at once, which cannot be compared yet"
ALLROUNDERS = (Family(arch=ARCH, build=build, wishes=WISHES, reference=reference, apart=APART),)


def unknown(folder: Path, wishes: Sequence[Wish], output_type: str) -> list[Tensor]:
    """Nothing was kept of what the published code makes of other sizes."""
    raise NotImplementedError(
        f"only what `build` writes by default has a reference, and {folder} is another checkpoint"
    )


WIDER = (
    Family(
        arch=ARCH,
        build=partial(build, heads=4, shared=2, layers=3),
        wishes=WISHES,
        reference=unknown,
        kind="wide",
        apart=APART,
    ),
)
