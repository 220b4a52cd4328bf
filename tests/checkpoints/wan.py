"""Tiny random checkpoints of the Wan kinds, in the layout that diffusers saves, and what the reference makes of them.

Kinds: "2.1" (one network), "A14B" (two experts and a boundary), "5B" (a time per token, VAE with factor 16); from
pictures: "2.1-I2V" (an image encoder), "2.1-FLF2V" (places for two pictures), "A14B-I2V" (two experts, no encoder).
Transformers of width 32 (2 heads of 16, two blocks), UMT5 text encoder of width 24, VAEs of 8 to 32 channels, CLIP
of width 12 that sees 4 patches of 16 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVideoToVideoPipeline,
)
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from omnimuse.core.params import DiffusionParams
from tests.checkpoints import encoders, parts
from tests.checkpoints.wishes import Family, Wish, film, of_picture, photo

TEXT_WIDTH = 24
DEEP_CHANNELS = 12
FLOW_SHIFT = {"2.1": 3.0, "A14B": 12.0, "5B": 5.0, "2.1-I2V": 3.0, "2.1-FLF2V": 5.0, "A14B-I2V": 12.0}
"""With a shift of 12 the boundary of .875 falls between the last steps of 3, 4 or 5: each expert has its share."""
SEEN, IMAGE_WIDTH, IMAGE_SIDE = 5, 12, 32
"""Tokens of one picture, their width, and the side that the image encoder sees."""
UNREAD = "" if find_spec("ftfy") else "does not draw this: name 'ftfy' is not defined"
"""What the reference's pipelines from pictures say where that library of the `test` extra is not installed."""
CONTEXT = 512
"""Text tokens beside which the reference finds the tokens of pictures, whatever was asked for."""


def transformer(kind: str, *, beside: int = 0) -> WanTransformer3DModel:
    """The network of the reference, small; still to be drawn. It sees so many channels `beside` the usual ones."""
    channels, sees = DEEP_CHANNELS if kind == "5B" else 16, kind.startswith("2.1-")
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=(2 * channels + 4 if "-" in kind else channels) + beside,
        out_channels=channels,
        image_dim=IMAGE_WIDTH if sees else None,
        added_kv_proj_dim=32 if sees else None,
        pos_embed_seq_len=2 * SEEN if kind == "2.1-FLF2V" else None,
        text_dim=TEXT_WIDTH,
        freq_dim=32,
        ffn_dim=64,
        num_layers=2,
        rope_max_seq_len=64,
    )


def image_encoder() -> CLIPVisionModel:
    """As the published one, with less of everything."""
    config = CLIPVisionConfig(
        hidden_size=IMAGE_WIDTH,
        intermediate_size=20,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=IMAGE_SIDE,
        patch_size=16,
        hidden_act="gelu",
    )
    return CLIPVisionModel(config)


def vae() -> AutoencoderKLWan:
    """Factor 8 in space and 4 in time, the published 16 channels with their means and deviations."""
    return AutoencoderKLWan(base_dim=8, dim_mult=[1, 2, 2, 2], num_res_blocks=1)


def deep_vae() -> AutoencoderKLWan:
    """Factor 16 in space: 2 x 2 pixels per channel before the first convolution, averaging shortcuts."""
    return AutoencoderKLWan(
        base_dim=8,
        decoder_base_dim=12,
        z_dim=DEEP_CHANNELS,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=1,
        latents_mean=[0.1 * (channel - 5) for channel in range(DEEP_CHANNELS)],
        latents_std=[0.5 + 0.1 * channel for channel in range(DEEP_CHANNELS)],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    )


def build(folder: Path, kind: str, *, seed: int = 0, boundary_ratio: float = 0.875) -> Path:
    """Writes the checkpoint of that kind into `folder` and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = encoders.t5_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    two, sees = kind.startswith("A14B"), kind.startswith("2.1-")
    networks = ("transformer", "transformer_2") if two else ("transformer",)
    for name in networks:
        parts.save_module(folder, name, seed, lambda: transformer(kind))
    if sees:
        parts.save_module(folder, "image_encoder", seed, image_encoder)
        processor = CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIDE}, crop_size=IMAGE_SIDE)
        processor.save_pretrained(folder / "image_processor")
    parts.save_module(folder, "text_encoder", seed, lambda: encoders.umt5_encoder(len(tokenizer)))
    parts.save_module(folder, "vae", seed, deep_vae if kind == "5B" else vae)
    solver = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": FLOW_SHIFT[kind]}
    parts.write_scheduler(folder, "UniPCMultistepScheduler", solver)
    components: dict[str, tuple[str, str] | None] = {
        "scheduler": ("diffusers", "UniPCMultistepScheduler"),
        "text_encoder": ("transformers", "UMT5EncoderModel"),
        "tokenizer": ("transformers", "T5TokenizerFast"),
        "transformer_2": None,
        "vae": ("diffusers", "AutoencoderKLWan"),
        **dict.fromkeys(networks, ("diffusers", "WanTransformer3DModel")),
    }
    if "-" in kind:
        seeing = {"image_encoder": "CLIPVisionModel", "image_processor": "CLIPImageProcessor"}
        components |= {name: ("transformers", cls) if sees else None for name, cls in seeing.items()}
    options = {"boundary_ratio": boundary_ratio if two else None, "expand_timesteps": kind == "5B"}
    arch = "WanImageToVideoPipeline" if "-" in kind else "WanPipeline"
    parts.write_index(folder, arch, components, options)
    return folder


def pipeline(folder: Path, dtype: torch.dtype = torch.float32, *, pictures: bool = False) -> Any:
    """A reference pipeline over the checkpoint in `folder`, VAE and image encoder in float32 as in its own example."""
    exact: dict[str, Any] = {"vae": AutoencoderKLWan.from_pretrained(folder / "vae", torch_dtype=torch.float32)}
    if (folder / "image_encoder").exists():
        exact["image_encoder"] = CLIPVisionModel.from_pretrained(folder / "image_encoder", dtype=torch.float32)
    kind = WanImageToVideoPipeline if pictures else WanPipeline
    pipe = kind.from_pretrained(folder, dtype=dtype, **exact)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(pipe: Any, wish: Wish, output_type: str) -> Tensor:
    """What a reference pipeline makes of a wish: frames [F, 3, H, W], or latents [C, f, h, w].

    Those for pictures and videos read no text without the library ftfy, so they get what the other one reads.
    """
    if wish.video:
        return call_changing(pipe, wish, output_type)
    asked = {"prompt": wish.prompt, "negative_prompt": wish.negative}
    if wish.image is not None:
        asked = {**read(pipe, wish), "image": wish.image, "last_image": wish.last}
    return pipe(
        **asked,
        height=wish.params.height,
        width=wish.params.width,
        num_frames=wish.params.num_frames,
        num_inference_steps=wish.params.num_inference_steps,
        guidance_scale=wish.params.guidance_scale,
        guidance_scale_2=wish.params.guidance_scale_2,
        generator=torch.Generator().manual_seed(wish.params.seed or 0),
        output_type=output_type,
        max_sequence_length=wish.params.max_sequence_length,
    ).frames[0]


def read(pipe: Any, wish: Wish) -> dict[str, Any]:
    """What the text encoder makes of the prompts, as arguments."""
    reader = WanPipeline(pipe.tokenizer, pipe.text_encoder, pipe.vae, pipe.scheduler)
    guided = max(wish.params.guidance_scale or 0, wish.params.guidance_scale_2 or 0) > 1
    asked = {"prompt": wish.prompt, "negative_prompt": wish.negative, "do_classifier_free_guidance": guided}
    embeds = reader.encode_prompt(**asked, max_sequence_length=wish.params.max_sequence_length)
    return dict(zip(("prompt_embeds", "negative_prompt_embeds"), embeds, strict=True))


def call_changing(pipe: Any, wish: Wish, output_type: str, network: str = "transformer") -> Tensor:
    """What the reference makes of a wish with a video; it knows one network, so `network` says which draws all."""
    parts = pipe.tokenizer, pipe.text_encoder, getattr(pipe, network), pipe.vae, pipe.scheduler
    changing = WanVideoToVideoPipeline(*parts)
    changing.set_progress_bar_config(disable=True)
    params = wish.params
    return changing(
        **read(pipe, wish),
        video=list(wish.video[: params.num_frames]),
        height=params.height,
        width=params.width,
        num_inference_steps=params.num_inference_steps,
        guidance_scale=params.guidance_scale,
        strength=params.strength,
        generator=torch.Generator().manual_seed(params.seed or 0),
        output_type=output_type,
    ).frames[0]


def reference(
    folder: Path, wishes: Sequence[Wish], output_type: str, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """What the reference makes of every wish: by the pipeline for pictures where it has one."""
    pipes = {shown: pipeline(folder, dtype, pictures=shown) for shown in {wish.image is not None for wish in wishes}}
    return [call(pipes[wish.image is not None], wish, output_type) for wish in wishes]


def _clip(steps: int, guidance: float, frames: int, height: int, width: int) -> DiffusionParams:
    params = of_picture(steps, guidance, height, width, 0)
    return replace(params, num_frames=frames, max_sequence_length=32)


def _from_text(kind: str, side: int, second: float | None = None) -> Family:
    """Videos of 5, 1 and 9 frames; sides are multiples of `side`; `second` is the scale of the second expert."""
    clips = (
        _clip(4, 4.0, 5, side * 2, side * 2),
        _clip(3, 1.0, 1, side * 2, side * 3),
        _clip(5, 6.0, 9, side, side * 2),
    )
    first = Wish("a star", "grey", replace(_clip(4, 3.0, 9, side * 2, side), seed=10), photo(50, 70))
    changed = Wish(
        "a star", "grey", replace(_clip(4, 3.0, 5, side * 2, side * 3), seed=10, strength=0.6), video=film(60, 40, 13)
    )
    return Family(
        arch="WanPipeline",
        kind=kind,
        build=partial(build, kind=kind),
        wishes=(
            Wish(
                "a red circle &amp; two   green stars",
                "blurry, grey",
                replace(clips[0], seed=7, guidance_scale_2=second),
            ),
            Wish("a story about Them: it goes on and on " * 8, None, replace(clips[1], seed=8, max_sequence_length=24)),
            Wish("a star", None, replace(clips[2], seed=9)),
            *([first] if kind == "5B" else [changed] if kind == "2.1" else []),
        ),
        reference=reference,
    )


def from_pictures(kind: str, tokens: int, second: float | None = None, *, both: bool = False) -> Family:
    """Videos of 5 and 9 frames that begin with a picture, `both`: and may end with another. `tokens` of text."""
    clips = [
        replace(_clip(steps, guidance, frames, height, width), max_sequence_length=tokens)
        for steps, guidance, frames, height, width in ((4, 4.0, 5, 32, 48), (3, 1.0, 9, 32, 32), (5, 6.0, 5, 48, 32))
    ]
    last = photo(40, 40) if both else None
    return Family(
        arch="WanPipeline",
        kind=kind,
        build=partial(build, kind=kind),
        wishes=(
            Wish("two green stars", "grey", replace(clips[0], seed=7, guidance_scale_2=second), photo(70, 50), last),
            Wish("a story about Them: it goes on " * 8, None, replace(clips[1], seed=8), photo(31, 64), last),
            Wish("a star", None, replace(clips[2], seed=9), photo(33, 33), last if kind == "2.1-FLF2V" else None),
        ),
        reference=reference,
        apart=UNREAD,
    )


FAMILIES = (
    _from_text("2.1", 16),
    _from_text("A14B", 16, second=2.0),
    _from_text("5B", 32),
    from_pictures("2.1-I2V", 512),
    from_pictures("A14B-I2V", 32, second=2.0, both=True),
)
