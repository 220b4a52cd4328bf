"""A tiny Qwen2.5-Omni checkpoint in the published layout: a folder with all networks, a tokenizer, a chat template, how
pictures and sounds are prepared, and its voices beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration

from omnimuse.loader.components import quiet
from tests.checkpoints import parts
from tests.checkpoints.conversations import MARKED, PREPARING, begun, saved, thought
from tests.checkpoints.qwen3 import CHOICES, PROMPTS
from tests.checkpoints.qwen3_tts import filled
from tests.checkpoints.wishes import Answerer, Writer

ROTATION = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1_000_000}
THINKER = {
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": 4096,
    "rope_parameters": ROTATION,
    "tie_word_embeddings": False,
}
VISION = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 16,
    "out_hidden_size": 48,
    "fullatt_block_indexes": [1],
}
HEARING = {
    "num_mel_bins": 128,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 40,
    "d_model": 32,
    "n_window": 50,
    "output_dim": 48,
}
TALKER = {
    "embedding_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "rope_parameters": ROTATION,
}
FLOW = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "head_dim": 16,
    "emb_dim": 12,
    "block_size": 6,
    "look_ahead_layers": [1],
    "look_backward_layers": [0, 3],
    "mel_dim": 16,
    "enc_emb_dim": 10,
    "enc_dim": 8,
    "enc_channels": [8, 8, 8, 16],
    "enc_kernel_sizes": [5, 3, 3, 1],
    "enc_dilations": [1, 2, 3, 1],
    "enc_attention_channels": 4,
    "enc_se_channels": 4,
    "dropout": 0.0,
}
VOCODER = {
    "mel_dim": 16,
    "upsample_initial_channel": 16,
    "resblock_kernel_sizes": [3, 5],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 2, 3]],
    "upsample_rates": [3, 2],
    "upsample_kernel_sizes": [7, 4],
}
CODES, WORDS = 24, 32
"""Codes that are sounds, and all that the talker says, marks included."""
MARKS = {"pad": CODES, "start": CODES + 1, "end": CODES + 2, "mask": CODES + 3}
VOICES = ("Ethan", "Chelsie")
SHOWING = {**PREPARING, "processor_class": "Qwen2_5OmniProcessor", "max_pixels": 16_384, "chunk_length": 8}
"""How pictures and sounds are prepared."""


def configuration(ids: Callable[[str], int], vocabulary: int) -> Qwen2_5OmniConfig:
    """That of the checkpoint, whose tokens have these `ids`."""
    media = {f"{kind}_token_index": ids(f"<|{kind}_pad|>") for kind in ("audio", "image", "video")}
    starts = {
        "audio_start_token_id": ids("<|audio_start|>"),
        "audio_end_token_id": ids("<|audio_end|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
    }
    texts = {"start": "<tts_text_bos>", "end": "<tts_text_eod>", "pad": "<tts_pad>"}
    return Qwen2_5OmniConfig(
        thinker_config={
            "text_config": {**THINKER, "vocab_size": vocabulary},
            "vision_config": VISION,
            "audio_config": HEARING,
            "user_token_id": ids("user"),
            **media,
            **starts,
        },
        talker_config={
            **TALKER,
            "vocab_size": WORDS,
            **{f"tts_codec_{name}_token_id": id_ for name, id_ in MARKS.items()},
            **{f"tts_text_{name}_token_id": ids(text) for name, text in texts.items()},
            "spatial_merge_size": VISION["spatial_merge_size"],
            **media,
            **starts,
        },
        token2wav_config={"dit_config": {**FLOW, "num_embeds": WORDS - 1}, "bigvgan_config": VOCODER},
    )


@torch.no_grad()
def tamed(model: Any) -> None:
    """Random numbers that speak: waves are no noise and hardly cut off at 1, and it ends, but neither at once nor late,
    for no code is much likelier than another.
    """
    for name, value in model.token2wav.named_parameters():
        if "bigvgan" in name:
            value.copy_(filled(name, tuple(value.shape)) * (0.05 if "conv_post" in name else 1))
    model.talker.codec_head.weight[:CODES] *= 0.3
    model.talker.codec_head.weight[CODES:] = 0


def voices(ids: Callable[[str], int]) -> dict[str, dict[str, Any]]:
    """What the checkpoint has of each voice."""
    made = torch.Generator().manual_seed(0)
    begins = ("<tts_text_bos>", "<tts_text_bos_single>")
    return {
        name: {
            "cond": torch.randn(1, FLOW["enc_emb_dim"], generator=made),
            "ref_mel": torch.randn(1, 20 + 3 * number, FLOW["mel_dim"], generator=made),
            "bos_token": ids(begins[number]),
        }
        for number, name in enumerate(VOICES)
    }


def build(folder: Path, *, speaks: bool = True, places: int = 0, wide: bool = False) -> Path:
    """Writes the checkpoint into `folder` and returns it; one that does not speak has no talker, and one whose talker
    has so many `places` says codes until there are no more: its end is a mark that it never says. In a `wide` one no
    heads share keys, so that ranks can share them out.
    """
    tokenizer = begun(folder, (*MARKED, "<tts_text_bos_single>"), SHOWING)
    ids = tokenizer.convert_tokens_to_ids
    torch.save(voices(ids), folder / "spk_dict.pt")
    with quiet("transformers"):
        config = configuration(ids, len(tokenizer))
        config.enable_audio_output = speaks
        if wide:
            for each in (config.thinker_config.text_config, config.talker_config):
                each.num_key_value_heads = each.num_attention_heads
        if places:
            config.talker_config.max_position_embeddings = places
            config.talker_config.tts_codec_end_token_id = config.talker_config.tts_codec_pad_token_id = MARKS["start"]
        model = Qwen2_5OmniForConditionalGeneration(config)
        parts.filled("model", 0, model)
        if speaks:
            tamed(model)
        return saved(folder, model, tokenizer)


def opened(folder: Path) -> Any:
    """The checkpoint as transformers has it."""
    with quiet("transformers"):
        return Qwen2_5OmniForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


def generated(
    folder: Path, prompt: str | Sequence[Mapping[str, str]], seed: int, choices: Mapping[str, Any]
) -> list[int]:
    """The tokens that the thinker of transformers writes after a prompt, with all random numbers from `seed`."""
    return thought(opened(folder), folder, prompt, seed, choices)


WRITERS = (
    Writer(
        arch="Qwen2_5OmniForConditionalGeneration",
        build=build,
        prompts=PROMPTS,
        choices=CHOICES,
        reference=generated,
    ),
)

ANSWERERS = (Answerer("Qwen2_5OmniForConditionalGeneration", build, meanwhile=False),)
