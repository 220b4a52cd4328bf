"""Tiny random checkpoints of Qwen3-Omni in the layout that transformers saves, and what its `generate` makes of them.

Thinker of width 48 (three layers, four heads of 16, two of keys and values; four experts, of which a token asks two).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import Qwen3OmniMoeConfig, Qwen3OmniMoeForConditionalGeneration

from omnimuse.loader.components import quiet
from tests.checkpoints import parts
from tests.checkpoints.conversations import MARKED, PREPARING, begun, saved, thought
from tests.checkpoints.qwen3 import CHOICES, PROMPTS
from tests.checkpoints.qwen3_tts import filled
from tests.checkpoints.wishes import Answerer, Writer

ROTATION = {"rope_type": "default", "mrope_section": [4, 2, 2], "interleaved": True, "rope_theta": 1_000_000}
THINKER = {
    "hidden_size": 48,
    "intermediate_size": 40,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "max_position_embeddings": 2048,
    "rope_parameters": ROTATION,
}
VISION = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 48,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0, 1],
}
HEARING = {
    "num_mel_bins": 128,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 40,
    "d_model": 32,
    "n_window": 50,
    "n_window_infer": 200,
    "output_dim": 48,
    "downsample_hidden_size": 8,
}
TALKER = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "rope_parameters": ROTATION,
}
PREDICTOR = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_code_groups": 4,
}
CODE2WAV = {
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_quantizers": 4,
    "sliding_window": 5,
    "upsample_rates": [3, 2],
    "upsampling_ratios": [2, 2],
    "decoder_dim": 16,
}
CODES, MARKS = 24, 1024
VOICES = {"ethan": CODES + 20, "chelsie": CODES + 21}
ACCEPTED = 1
"""The layer that the talker hears of pictures and sounds from: one that deepstack adds to."""


def configuration(ids: Callable[[str], int], vocabulary: int, thinker: Mapping[str, Any]) -> Qwen3OmniMoeConfig:
    """That of the checkpoint, whose tokens have these `ids`, and its `thinker` this besides."""
    thinker = {**THINKER, **thinker}
    width = thinker["hidden_size"]
    media = {f"{kind}_token_id": ids(f"<|{kind}_pad|>") for kind in ("audio", "image", "video")}
    starts = {f"{name}_token_id": ids(f"<|{name}|>") for name in ("audio_start", "audio_end", "vision_start")}
    marks = ("pad", "bos", "eos_token", "think", "nothink", "think_bos", "think_eos")
    codec = {f"codec_{name}_id": CODES + number for number, name in enumerate(marks)}
    return Qwen3OmniMoeConfig(
        thinker_config={
            "text_config": {**thinker, "vocab_size": vocabulary},
            "vision_config": {**VISION, "out_hidden_size": width},
            "audio_config": {**HEARING, "output_dim": width},
            "user_token_id": ids("user"),
            **media,
            **starts,
        },
        talker_config={
            "text_config": {**TALKER, "vocab_size": CODES + MARKS},
            "code_predictor_config": {**PREDICTOR, "vocab_size": CODES},
            "num_code_groups": 4,
            "thinker_hidden_size": width,
            "accept_hidden_layer": ACCEPTED,
            "speaker_id": VOICES,
            "spatial_merge_size": VISION["spatial_merge_size"],
            **codec,
            **media,
            **starts,
        },
        code2wav_config={**CODE2WAV, "codebook_size": CODES},
        im_start_token_id=ids("<|im_start|>"),
        im_end_token_id=ids("<|im_end|>"),
        tts_pad_token_id=ids("<tts_pad>"),
        tts_bos_token_id=ids("<tts_text_bos>"),
        tts_eos_token_id=ids("<tts_text_eod>"),
        user_token_id=ids("user"),
        assistant_token_id=ids("assistant"),
        system_token_id=ids("system"),
    )


@torch.no_grad()
def tamed(model: Any) -> None:
    """Random numbers that speak: waves are no noise and hardly cut off at 1, and it ends, but not at once."""
    for name, value in model.code2wav.named_parameters():
        value.copy_(filled(name, tuple(value.shape)))
    model.talker.codec_head.weight[model.config.talker_config.codec_eos_token_id] = 0


def build(
    folder: Path,
    *,
    speaks: bool = True,
    wide: bool = False,
    accepted: int = ACCEPTED,
    thinker: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """Writes the checkpoint into `folder` and returns it; one that does not speak has no talker. In a `wide` one heads
    of the talker share no keys, so that ranks can share them out. It hears what comes behind so many layers. What else
    the `thinker` is to be is in the words of its configuration.
    """
    tokenizer = begun(folder, MARKED, PREPARING)
    with quiet("transformers"):
        config = configuration(tokenizer.convert_tokens_to_ids, len(tokenizer), thinker)
        config.enable_audio_output = speaks
        config.talker_config.accept_hidden_layer = accepted
        if wide:
            config.talker_config.text_config.num_key_value_heads = 2
        model = Qwen3OmniMoeForConditionalGeneration(config)
        parts.filled("model", 0, model)
        if speaks:
            tamed(model)
        return saved(folder, model, tokenizer)


def generated(
    folder: Path, prompt: str | Sequence[Mapping[str, str]], seed: int, choices: Mapping[str, Any]
) -> list[int]:
    """The tokens that the thinker of transformers writes after a prompt, with all random numbers from `seed`."""
    with quiet("transformers"):
        model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return thought(model, folder, prompt, seed, choices)


WRITERS = (
    Writer(
        arch="Qwen3OmniMoeForConditionalGeneration",
        build=build,
        prompts=PROMPTS,
        choices=CHOICES,
        reference=generated,
    ),
)

ANSWERERS = (Answerer("Qwen3OmniMoeForConditionalGeneration", build),)
