"""Every family for which diffusers loads adapters: what ours draws with them is what that library draws."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from omnimuse import Config, ModelConfig, Omni
from omnimuse.core.loras import Lora
from tests.checkpoints.adapters import (
    RANK,
    Layers,
    Style,
    kohya,
    layers_of,
    peft,
    products,
    worn_by_the_reference,
    write,
)
from tests.checkpoints.families import FAMILIES
from tests.checkpoints.wishes import Family, Wish
from tests.distance import distance

Tiny = Callable[[str], Path]
TOLERANCE = 1e-5
WITH_ADAPTERS = [family for family in FAMILIES if hasattr(getattr(diffusers, family.arch), "load_lora_weights")]

# diffusers hands torch tensors to numpy in a way that numpy 2 wants spelled differently.
pytestmark = [
    pytest.mark.crossed,
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation:DeprecationWarning", "ignore:__array_wrap__:DeprecationWarning"
    ),
]


@pytest.fixture(scope="module", params=WITH_ADAPTERS, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture(scope="module")
def folder(family: Family, tiny: Tiny) -> Path:
    return tiny(family.name)


def ours(folder: Path, wishes: list[Wish], adapters: Mapping[Path, float]) -> list[Tensor]:
    return drawn(folder, wishes, [Lora(str(file), scale) for file, scale in adapters.items()])


def drawn(folder: Path, wishes: list[Wish], loras: Sequence[Lora]) -> list[Tensor]:
    params = [replace(wish.params, output_type="latent", loras=loras) for wish in wishes]
    config = Config(ModelConfig(str(folder), dtype="float32", device="cpu"))
    with Omni(str(folder), config=config) as omni:
        return [result.output[0] for result in omni.generate([w.asked for w in wishes], params, progress=False)]


def theirs(
    family: Family, folder: Path, changed: Path, wishes: list[Wish], adapters: Mapping[Path, float]
) -> list[Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reference's own
        return family.reference(worn_by_the_reference(folder, changed, adapters), wishes, "latent")


Whole = Mapping[str, tuple[str, ...]]
"""Layers by the names that trainers have for them: what the checkpoint calls their parts, in order."""


def of_two_blocks(*names: tuple[str, str, str]) -> dict[str, tuple[str, ...]]:
    """(theirs, ours, what stands for a + in ours, part by part), with stars for the number of a block."""
    return {
        theirs.replace("*", number): tuple(ours.replace("*", number).replace("+", part) for part in parts or "+")
        for number in "01"
        for theirs, ours, parts in names
    }


DOUBLE, SINGLE = "transformer_blocks.*", "single_transformer_blocks.*"
FLUX = of_two_blocks(
    ("double_blocks.*.img_attn.qkv", f"{DOUBLE}.attn.to_+", "qkv"),
    ("double_blocks.*.txt_attn.qkv", f"{DOUBLE}.attn.add_+_proj", "qkv"),
    ("double_blocks.*.txt_attn.proj", f"{DOUBLE}.attn.to_add_out", ""),
    ("double_blocks.*.img_mlp.0", f"{DOUBLE}.ff.net.0.proj", ""),
    ("single_blocks.*.linear2", f"{SINGLE}.proj_out", ""),
    ("single_blocks.*.modulation.lin", f"{SINGLE}.norm.linear", ""),
)
END = {"final_layer.linear": ("proj_out",), "final_layer.adaLN_modulation.1": ("norm_out.linear",)}
TURNED = ("final_layer.adaLN_modulation.1", "joint_blocks.2.context_block.adaLN_modulation.1")
"""A shift and a scale, which are a scale and a shift where the checkpoint has them."""
WHOLE_FLUX = {
    **END,
    "single_blocks.1.linear1": (
        *(f"single_transformer_blocks.1.attn.to_{part}" for part in "qkv"),
        "single_transformer_blocks.1.proj_mlp",
    ),
}
XLABS = of_two_blocks(
    ("double_blocks.*.processor.qkv_lora1", f"{DOUBLE}.attn.to_+", "qkv"),
    ("double_blocks.*.processor.qkv_lora2", f"{DOUBLE}.attn.add_+_proj", "qkv"),
    ("double_blocks.*.processor.proj_lora2", f"{DOUBLE}.attn.to_add_out", ""),
    ("single_blocks.*.processor.qkv_lora", f"{SINGLE}.attn.to_+", "qkv"),
    ("single_blocks.*.processor.proj_lora", f"{SINGLE}.proj_out", ""),
)
CHROMA = of_two_blocks(
    ("double_blocks.*.img_attn.qkv", f"{DOUBLE}.attn.to_+", "qkv"),
    ("double_blocks.*.txt_mlp.2", f"{DOUBLE}.ff_context.net.2", ""),
    ("single_blocks.*.linear2", f"{SINGLE}.proj_out", ""),
)
WAN = of_two_blocks(
    *((f"blocks.*.self_attn.{part}", f"blocks.*.attn1.to_{part}", "") for part in "qkv"),
    *((f"blocks.*.cross_attn.{part}", f"blocks.*.attn2.to_{part}", "") for part in "qkv"),
    *((f"blocks.*.cross_attn.{part}_img", f"blocks.*.attn2.add_{part}_proj", "") for part in "kv"),
    ("blocks.*.self_attn.o", "blocks.*.attn1.to_out.0", ""),
    ("blocks.*.cross_attn.o", "blocks.*.attn2.to_out.0", ""),
    ("blocks.*.ffn.0", "blocks.*.ffn.net.0.proj", ""),
    ("blocks.*.ffn.2", "blocks.*.ffn.net.2", ""),
)
AROUND_WAN = {
    **{f"{kind}_embedding.0": (f"condition_embedder.{kind}_embedder.linear_1",) for kind in ("text", "time")},
    **{f"{kind}_embedding.2": (f"condition_embedder.{kind}_embedder.linear_2",) for kind in ("text", "time")},
    "time_projection.1": ("condition_embedder.time_proj",),
    "img_emb.proj.1": ("condition_embedder.image_embedder.ff.net.0.proj",),
    "img_emb.proj.3": ("condition_embedder.image_embedder.ff.net.2",),
    "head.head": ("proj_out",),
}
VACE = {
    "vace_blocks.0.self_attn.q": ("vace_blocks.0.attn1.to_q",),
    "vace_blocks.0.before_proj": ("vace_blocks.0.proj_in",),
    "vace_blocks.0.after_proj": ("vace_blocks.0.proj_out",),
    "blocks.1.ffn.2": ("blocks.1.ffn.net.2",),
}
FLUX_2 = of_two_blocks(
    ("double_blocks.*.img_attn.qkv", f"{DOUBLE}.attn.to_+", "qkv"),
    ("double_blocks.*.txt_attn.qkv", f"{DOUBLE}.attn.add_+_proj", "qkv"),
    ("double_blocks.*.img_attn.proj", f"{DOUBLE}.attn.to_out.0", ""),
    ("double_blocks.*.txt_attn.proj", f"{DOUBLE}.attn.to_add_out", ""),
    ("double_blocks.*.img_mlp.0", f"{DOUBLE}.ff.linear_in", ""),
    ("double_blocks.*.img_mlp.2", f"{DOUBLE}.ff.linear_out", ""),
    ("double_blocks.*.txt_mlp.0", f"{DOUBLE}.ff_context.linear_in", ""),
    ("double_blocks.*.txt_mlp.2", f"{DOUBLE}.ff_context.linear_out", ""),
    ("single_blocks.*.linear1", f"{SINGLE}.attn.to_qkv_mlp_proj", ""),
    ("single_blocks.*.linear2", f"{SINGLE}.attn.to_out", ""),
)
AROUND_FLUX_2 = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_guidance_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_guidance_embed.timestep_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
}
MODULATIONS = {
    f"{name}.lin": (f"{name}.linear",)
    for name in ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")
}
Z_IMAGE = of_two_blocks(
    ("layers.*.attention.qkv", "layers.*.attention.to_+", "qkv"),
    ("layers.*.attention.out", "layers.*.attention.to_out.0", ""),
    ("layers.*.feed_forward.w1", "layers.*.feed_forward.w1", ""),
)
Z_IMAGE_TWICE = {
    **Z_IMAGE,
    **of_two_blocks(
        *((f"layers.*.attention.to.{part}", f"layers.*.attention.to_{part}", "") for part in "qkv"),
        ("layers.*.attention.to_out.0", "layers.*.attention.to_out.0", ""),
    ),
}
QWEN_IMAGE = {
    name: (name,)
    for name in (
        "img_in",
        "txt_in",
        "proj_out",
        "norm_out.linear",
        "time_text_embed.timestep_embedder.linear_1",
        "time_text_embed.timestep_embedder.linear_2",
        *(
            f"transformer_blocks.1.{layer}"
            for layer in (
                *(f"attn.to_{part}" for part in ("q", "k", "v", "add_out", "out.0")),
                *(f"attn.add_{part}_proj" for part in "qkv"),
                *(f"{side}_m{layer}" for side in ("img", "txt") for layer in ("lp.net.0.proj", "lp.net.2", "od.1")),
            )
        ),
    )
}
LTX_2 = {
    "patchify_proj": ("proj_in",),
    "audio_patchify_proj": ("audio_proj_in",),
    "adaln_single.emb.timestep_embedder.linear_1": ("time_embed.emb.timestep_embedder.linear_1",),
    "audio_adaln_single.linear": ("audio_time_embed.linear",),
    "av_ca_video_scale_shift_adaln_single.linear": ("av_cross_attn_video_scale_shift.linear",),
    "av_ca_audio_scale_shift_adaln_single.linear": ("av_cross_attn_audio_scale_shift.linear",),
    "av_ca_a2v_gate_adaln_single.linear": ("av_cross_attn_video_a2v_gate.linear",),
    "av_ca_v2a_gate_adaln_single.linear": ("av_cross_attn_audio_v2a_gate.linear",),
    "transformer_blocks.1.attn1.to_q": ("transformer_blocks.1.attn1.to_q",),
}
LUMINA = {
    **of_two_blocks(
        ("layers.*.attention.qkv", "layers.*.attn.to_+", "qkv"),
        ("layers.*.attention.out", "layers.*.attn.to_out.0", ""),
        ("layers.*.feed_forward.w2", "layers.*.feed_forward.linear_2", ""),
        ("layers.*.adaLN_modulation.1", "layers.*.norm1.linear", ""),
    ),
    "cap_embedder.1": ("time_caption_embed.caption_embedder.1",),
    "t_embedder.mlp.2": ("time_caption_embed.timestep_embedder.linear_2",),
    "final_layer.linear": ("norm_out.linear_2",),
}
STABLE_DIFFUSION_3 = {
    **of_two_blocks(
        ("joint_blocks.*.x_block.attn.qkv", f"{DOUBLE}.attn.to_+", "qkv"),
        ("joint_blocks.*.x_block.attn.proj", f"{DOUBLE}.attn.to_out.0", ""),
        ("joint_blocks.*.x_block.mlp.fc1", f"{DOUBLE}.ff.net.0.proj", ""),
        ("joint_blocks.*.x_block.mlp.fc2", f"{DOUBLE}.ff.net.2", ""),
        ("joint_blocks.*.x_block.adaLN_modulation.1", f"{DOUBLE}.norm1.linear", ""),
        ("joint_blocks.*.context_block.attn.qkv", f"{DOUBLE}.attn.add_+_proj", "qkv"),
    ),
    "joint_blocks.0.x_block.attn2.qkv": tuple(f"transformer_blocks.0.attn2.to_{part}" for part in "qkv"),
    "joint_blocks.0.context_block.attn.proj": ("transformer_blocks.0.attn.to_add_out",),
    "joint_blocks.0.context_block.mlp.fc2": ("transformer_blocks.0.ff_context.net.2",),
    "joint_blocks.0.context_block.adaLN_modulation.1": ("transformer_blocks.0.norm1_context.linear",),
    "joint_blocks.2.context_block.adaLN_modulation.1": ("transformer_blocks.2.norm1_context.linear",),
    "t_embedder.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
    "y_embedder.mlp.2": ("time_text_embed.text_embedder.linear_2",),
    **END,
}
REFINER = "context_embedder.token_refiner.refiner_blocks.0"
HUNYUAN_VIDEO = {
    **of_two_blocks(
        *((f"double_blocks.*.img_attn_{part}", f"{DOUBLE}.attn.to_{part}", "") for part in "qkv"),
        *((f"double_blocks.*.txt_attn_{part}", f"{DOUBLE}.attn.add_{part}_proj", "") for part in "qkv"),
        ("double_blocks.*.img_attn_proj", f"{DOUBLE}.attn.to_out.0", ""),
        ("double_blocks.*.txt_attn_proj", f"{DOUBLE}.attn.to_add_out", ""),
        ("double_blocks.*.img_mlp.fc1", f"{DOUBLE}.ff.net.0.proj", ""),
        ("double_blocks.*.txt_mlp.fc2", f"{DOUBLE}.ff_context.net.2", ""),
        ("double_blocks.*.img_mod.linear", f"{DOUBLE}.norm1.linear", ""),
        ("double_blocks.*.txt_mod.linear", f"{DOUBLE}.norm1_context.linear", ""),
    ),
    "txt_in.individual_token_refiner.blocks.0.self_attn_qkv": tuple(f"{REFINER}.attn.to_{part}" for part in "qkv"),
    "txt_in.individual_token_refiner.blocks.0.self_attn_proj": (f"{REFINER}.attn.to_out.0",),
    "txt_in.individual_token_refiner.blocks.0.mlp.fc1": (f"{REFINER}.ff.net.0.proj",),
    "txt_in.individual_token_refiner.blocks.0.mlp.fc2": (f"{REFINER}.ff.net.2",),
    "txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1": (f"{REFINER}.norm_out.linear",),
    "txt_in.input_embedder": ("context_embedder.proj_in",),
    "txt_in.c_embedder.linear_2": ("context_embedder.time_text_embed.text_embedder.linear_2",),
    "txt_in.t_embedder.mlp.0": ("context_embedder.time_text_embed.timestep_embedder.linear_1",),
    "time_in.mlp.2": ("time_embed.timestep_embedder.linear_2",),
    "byt5_in.fc3": ("context_embedder_2.linear_3",),
    "vision_in.proj.3": ("image_embedder.linear_2",),
    **END,
}


def with_bias(name: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    """As those of distilled networks are: a difference of the bias beside the product, and norms left as they were."""
    block = name.rpartition(".")[0]
    return {
        **AITOOLKIT(name, down, up),
        f"diffusion_model.{name}.diff_b": up[:, 0].clone(),
        f"diffusion_model.{block}.norm_q.diff": up.new_zeros(32),
    }


def with_whole_end(name: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    """As those of distilled Wan 2.2 are: the same, but of the last layer there is the whole difference."""
    tensors = with_bias(name, down, up)
    if name != "head.head":
        return tensors
    return {"diffusion_model.head.head.diff": up @ down, **{key: tensors[key] for key in tensors if "lora" not in key}}


CLIP_L = "text_encoders.clip_l.transformer."
AITOOLKIT, UNSCALED = peft("diffusion_model."), kohya(alpha=float(RANK))


def xlabs(name: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    return {f"{name}.down.weight": down, f"{name}.up.weight": up}


def dotted(name: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    """As a trainer of Z-Image names them."""
    return {f"diffusion_model.{name}.lora.down.weight": down, f"diffusion_model.{name}.lora.up.weight": up}


def comfy(name: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    """As ComfyUI names those of a CLIP."""
    layer = CLIP_L + name
    return {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up, f"{layer}.alpha": torch.tensor(2.0)}


def family_named(name: str) -> Family:
    return next(family for family in FAMILIES if family.name == name)


def sizes(folder: Path, whole: Whole) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of layers that are several of the checkpoint's."""
    known = layers_of(folder)
    return {name: (sum(known[part][0] for part in parts), known[parts[0]][1]) for name, parts in whole.items()}


@pytest.mark.parametrize(
    ("name", "whole", "style"),
    [
        pytest.param("FluxPipeline-dev", FLUX, kohya(), id="flux-kohya"),
        pytest.param("FluxPipeline-dev", XLABS, xlabs, id="flux-xlabs"),
        pytest.param("ChromaPipeline", CHROMA, kohya(), id="chroma-kohya"),
        pytest.param("Flux2KleinPipeline-base", {**FLUX_2, **AROUND_FLUX_2}, AITOOLKIT, id="flux2-aitoolkit"),
        pytest.param("Flux2KleinPipeline-base", FLUX_2, kohya(), id="flux2-kohya"),
        pytest.param("WanPipeline-2.1-I2V", {**WAN, **AROUND_WAN}, AITOOLKIT, id="wan-aitoolkit"),
        pytest.param("WanPipeline-2.1-I2V", WAN, with_bias, id="wan-biased"),
        pytest.param("WanPipeline-2.1-I2V", {**WAN, "head.head": ("proj_out",)}, with_whole_end, id="wan-distilled"),
        pytest.param("WanPipeline-2.1-I2V", WAN, kohya(), id="wan-kohya"),
        pytest.param("ZImagePipeline", Z_IMAGE, kohya(), id="zimage-kohya"),
        pytest.param("ZImagePipeline", Z_IMAGE_TWICE, dotted, id="zimage-twice"),
        pytest.param("QwenImagePipeline", QWEN_IMAGE, kohya(), id="qwen-image-kohya"),
        pytest.param("LTX2Pipeline", LTX_2, AITOOLKIT, id="ltx2-aitoolkit"),
    ],
)
def test_the_names_of_other_trainers_mean_what_the_reference_takes_them_for(
    tmp_path: Path, tiny: Tiny, name: str, whole: Whole, style: Style
) -> None:
    family = family_named(name)
    folder = tiny(family.name)
    adapters = {write(tmp_path / "a.safetensors", sizes(folder, whole), style): 1.3}
    wishes = [family.wishes[0]]
    [expected] = theirs(family, folder, tmp_path / "changed", wishes, adapters)
    [found], [plain] = ours(folder, wishes, adapters), ours(folder, wishes, {})
    assert distance(found, expected) <= TOLERANCE
    assert distance(found, plain) > 1e-3


@pytest.mark.parametrize(
    ("name", "whole", "style"),
    [
        pytest.param("FluxPipeline-dev", WHOLE_FLUX, AITOOLKIT, id="flux"),
        pytest.param("Flux2KleinPipeline-base", {**MODULATIONS, **END}, AITOOLKIT, id="flux2"),
        pytest.param("WanVACEPipeline", VACE, UNSCALED, id="vace-kohya"),
        pytest.param("Lumina2Pipeline", LUMINA, AITOOLKIT, id="lumina2"),
        pytest.param("Lumina2Pipeline", LUMINA, UNSCALED, id="lumina2-kohya"),
        pytest.param("StableDiffusion3Pipeline-3.5-medium", STABLE_DIFFUSION_3, UNSCALED, id="sd3-kohya"),
        pytest.param("HunyuanVideo15Pipeline-i2v", HUNYUAN_VIDEO, AITOOLKIT, id="hunyuan-video"),
        pytest.param("HunyuanVideo15Pipeline-i2v", HUNYUAN_VIDEO, UNSCALED, id="hunyuan-video-kohya"),
    ],
)
def test_a_whole_layer_is_what_its_parts_are(tmp_path: Path, tiny: Tiny, name: str, whole: Whole, style: Style) -> None:
    family = family_named(name)
    folder = tiny(family.name)
    known, made, tensors = layers_of(folder), sizes(folder, whole), dict[str, Tensor]()
    for layer, (down, up) in products(made).items():
        up = torch.cat(up.chunk(2)[::-1]) if layer in TURNED else up
        for part, rows in zip(whole[layer], up.split([known[part][0] for part in whole[layer]]), strict=True):
            tensors |= peft()(part, down, rows)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / "parts.safetensors")
    one = write(tmp_path / "whole.safetensors", made, style)
    wish = [family.wishes[0]]
    [expected], [plain] = ours(folder, wish, {tmp_path / "parts.safetensors": 1.0}), ours(folder, wish, {})
    [found] = ours(folder, wish, {one: 1.0})
    assert distance(found, expected) <= TOLERANCE
    assert distance(found, plain) > 1e-3


def of_attention(folder: Path, component: str) -> dict[str, tuple[int, int]]:
    """The layers of a text encoder that attend."""
    return {
        name: size for name, size in layers_of(folder, component).items() if re.search(r"self_attn|SelfAttention", name)
    }


@pytest.mark.parametrize(
    ("name", "style"),
    [
        pytest.param("FluxPipeline-dev", peft("text_encoder."), id="flux"),
        pytest.param("FluxPipeline-dev", kohya("lora_te1_"), id="flux-kohya"),
        pytest.param("FluxPipeline-dev", comfy, id="flux-comfy"),
        pytest.param("StableDiffusion3Pipeline-3", peft("text_encoder."), id="sd3"),
    ],
)
def test_an_adapter_for_a_text_encoder_is_what_the_reference_makes_of_it(
    tmp_path: Path, tiny: Tiny, name: str, style: Style
) -> None:
    family = family_named(name)
    folder = tiny(family.name)
    layers = of_attention(folder, "text_encoder")
    adapters, wishes = {write(tmp_path / "a.safetensors", layers, style): 0.9}, [family.wishes[0]]
    [expected] = theirs(family, folder, tmp_path / "changed", wishes, adapters)
    [found], [plain] = ours(folder, wishes, adapters), ours(folder, wishes, {})
    assert distance(found, expected) <= TOLERANCE
    assert distance(found, plain) > 1e-4


@pytest.mark.parametrize(
    ("name", "component", "begins"),
    [
        ("FluxPipeline-dev", "text_encoder_2", ("text_encoder_2.", "lora_te3_", "text_encoders.t5xxl.transformer.")),
        ("ChromaPipeline", "text_encoder", ("text_encoder.", "lora_te3_", "text_encoders.t5xxl.transformer.")),
        ("StableDiffusion3Pipeline-3", "text_encoder", ("lora_te1_", CLIP_L)),
        ("StableDiffusion3Pipeline-3", "text_encoder_2", ("lora_te2_", "text_encoders.clip_g.transformer.")),
    ],
)
def test_what_the_reference_does_not_take_for_a_text_encoder_is_what_weights_with_it_in_them_make(
    tmp_path: Path, tiny: Tiny, name: str, component: str, begins: tuple[str, ...]
) -> None:
    family = family_named(name)
    folder, wishes = tiny(family.name), [family.wishes[0]]
    layers = of_attention(folder, component)
    [expected] = family.reference(with_products(folder, tmp_path / "changed", component, layers, 0.9), wishes, "latent")
    for begin in begins:
        style = kohya(begin, alpha=float(RANK)) if begin.startswith("lora_") else peft(begin)
        [found] = ours(folder, wishes, {write(tmp_path / "a.safetensors", layers, style): 0.9})
        assert distance(found, expected) <= TOLERANCE
    assert distance(*ours(folder, wishes, {}), expected) > 1e-4


def with_products(folder: Path, changed: Path, component: str, layers: Layers, scale: float) -> Path:
    """A copy of the checkpoint in `folder` to whose `component` those products are added that `write` makes."""
    [file] = shutil.copytree(folder, changed).glob(f"{component}/*.safetensors")
    tensors = load_file(file)
    for name, (down, up) in products(layers).items():
        tensors[f"{name}.weight"] += scale * up @ down
    save_file(tensors, file, {"format": "pt"})
    return changed


@pytest.mark.parametrize("begins", ["connectors.", "text_embedding_projection."])
def test_an_adapter_for_what_lies_between_the_texts_and_the_network_is_what_the_reference_makes_of_it(
    tmp_path: Path, tiny: Tiny, begins: str
) -> None:
    family = family_named("LTX2Pipeline")
    folder = tiny(family.name)
    layers = layers_of(folder, "connectors")
    if begins == "text_embedding_projection.":  # of the others diffusers knows no first names
        layers = {"aggregate_embed": layers["text_proj_in"]}
    adapters, wishes = {write(tmp_path / "a.safetensors", layers, peft(begins)): 0.9}, [family.wishes[0]]
    [expected] = theirs(family, folder, tmp_path / "changed", wishes, adapters)
    [found], [plain] = ours(folder, wishes, adapters), ours(folder, wishes, {})
    assert distance(found, expected) <= TOLERANCE
    assert distance(found, plain) > 1e-4


@pytest.mark.parametrize("name", ["WanPipeline-A14B", "WanPipeline-A14B-I2V"])
def test_of_two_experts_each_wears_the_file_that_was_named_for_it(tmp_path: Path, tiny: Tiny, name: str) -> None:
    """Their files name no expert: trainers write one for each, and diffusers is told by `load_into_transformer_2`."""
    high = write(tmp_path / "high.safetensors", layers_of(tiny(name)), seed=1)
    low = write(tmp_path / "low.safetensors", layers_of(tiny(name)), seed=2)
    compare_experts(family_named(name), tiny(name), tmp_path, high, low)


def test_alphas_in_metadata_and_biases_of_up_matrices_are_what_the_reference_makes_of_them(
    tmp_path: Path, tiny: Tiny
) -> None:
    """diffusers writes "transformer" of both experts."""
    folder = tiny("WanPipeline-A14B")
    layers = {name: size for name, size in layers_of(folder).items() if "attn1" in name}

    def style(name: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
        return {**peft()(name, down, up), f"transformer.{name}.lora_B.bias": 0.1 * up[:, 0]}

    def said(alpha: float) -> dict[str, str]:
        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        settings = {"r": RANK, "lora_alpha": alpha, "lora_bias": True, "target_modules": targets}
        return {"lora_adapter_metadata": json.dumps({f"transformer.{name}": each for name, each in settings.items()})}

    high = write(tmp_path / "high.safetensors", layers, style, seed=1, metadata=said(2.0 * RANK))
    low = write(tmp_path / "low.safetensors", layers, style, seed=2, metadata=said(4.0 * RANK))
    compare_experts(family_named("WanPipeline-A14B"), folder, tmp_path, high, low)


def compare_experts(family: Family, folder: Path, tmp_path: Path, high: Path, low: Path) -> None:
    """Of two experts that wear `high` and `low`, ours draw what the reference's do."""
    wishes = [family.wishes[0]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reference's own
        changed = worn_by_the_reference(folder, tmp_path / "changed", {high: 0.8, low: -0.5}, [low])
        [expected] = family.reference(changed, wishes, "latent")
    loras = (Lora(str(high), 0.8), Lora(str(low), -0.5, "transformer_2"))
    [found], [first] = drawn(folder, wishes, loras), drawn(folder, wishes, loras[:1])
    assert distance(found, expected) <= TOLERANCE
    assert distance(found, first) > 1e-3, "the second is strong enough to be noticed"


def test_two_adapters_at_their_scales_are_what_the_reference_makes_of_them(
    family: Family, folder: Path, tmp_path: Path
) -> None:
    layers = layers_of(folder)
    one = write(tmp_path / "one.safetensors", layers, seed=1)
    two = write(tmp_path / "two.safetensors", layers, seed=2, rank=2)
    adapters, wishes = {one: 0.7, two: -0.4}, [family.wishes[0], family.wishes[1]]
    plain, found = ours(folder, wishes, {}), ours(folder, wishes, adapters)
    for expected, mine, before in zip(
        theirs(family, folder, tmp_path / "changed", wishes, adapters), found, plain, strict=True
    ):
        assert distance(mine, expected) <= TOLERANCE
        assert distance(mine, before) > 1e-3, "they are strong enough to be noticed"
