"""Conversations in which things are shown, how transformers prepares that, and what all checkpoints have of models that
answer aloud.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, WhisperFeatureExtractor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from omnimuse import Omni
from omnimuse.core.config import Config, ModelConfig, ScheduleConfig
from omnimuse.media.clip import clip_of
from omnimuse.media.recording import samples_of
from tests.checkpoints import parts
from tests.checkpoints.qwen3 import prompt_ids, theirs
from tests.checkpoints.wishes import chord, film, photo

PICTURES = (photo(40, 24), photo(17, 33))
SOUNDS = (chord(16_000, 0.4, 1), chord(16_000, 3.3, 1))
FRAMES = film(24, 16, 6)
VIDEO = clip_of(FRAMES, 2.0)
GENERATION = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9}
"""How the thinker writes where nobody says."""
PREPARING = {
    "processor_class": "Qwen3OmniMoeProcessor",
    "image_processor_type": "Qwen2VLImageProcessor",
    "feature_extractor_type": "WhisperFeatureExtractor",
    "patch_size": 4,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "min_pixels": 64,
    "max_pixels": 576,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "feature_size": 128,
    "sampling_rate": 16_000,
    "hop_length": 160,
    "n_fft": 400,
}
CONTENT = (
    "{%- if message.content is string %}{{- message.content }}{%- else %}{%- for part in message.content %}"
    "{%- if part.type == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif part.type == 'audio' %}{{- '<|audio_start|><|audio_pad|><|audio_end|>' }}"
    "{%- elif part.type == 'video' %}{{- '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{%- else %}{{- part.text }}{%- endif %}{%- endfor %}{%- endif %}"
)
TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
    f"{CONTENT}{{{{- '<|im_end|>\\n' }}}}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""As the published one: a content is a text, or parts."""
MARKED = (
    *("<|audio_start|>", "<|audio_pad|>", "<|audio_end|>", "<|vision_start|>", "<|image_pad|>", "<|video_pad|>"),
    *("<|vision_end|>", "<tts_pad>", "<tts_text_bos>", "<tts_text_eod>"),
)
SHOWING = ("patch_size", "merge_size", "temporal_patch_size", "min_pixels", "max_pixels", "image_mean", "image_std")
Talk = list[dict[str, Any]]


def shown(*kinds: str, text: str = "what is this") -> dict[str, Any]:
    """A message of the user that shows these."""
    return {"role": "user", "content": [*({"type": kind} for kind in kinds), {"type": "text", "text": text}]}


TALKS: tuple[tuple[Talk, Mapping[str, Any], Mapping[str, Any]], ...] = (
    ([shown("image")], {"images": PICTURES[:1]}, {"temperature": 0, "max_tokens": 12}),
    (
        [
            shown("audio", text="a red circle"),
            {"role": "assistant", "content": "yes"},
            shown("image", "audio", "image"),
        ],
        {"images": PICTURES, "sounds": SOUNDS},
        {"temperature": 0.9, "top_k": 20, "max_tokens": 10},
    ),
    (
        [{"role": "system", "content": "one two three " * 60}, shown("video", "image", "audio")],
        {"images": PICTURES[1:], "sounds": SOUNDS[1:], "videos": [VIDEO]},
        {"temperature": 0, "max_tokens": 12},
    ),
    ([shown("audio")], {"sounds": SOUNDS[:1]}, {"temperature": 0, "max_tokens": 12}),
)
"""Conversations, what they show, and how they are answered."""


ALOUD: tuple[tuple[Talk, Mapping[str, Any], int], ...] = (
    ([{"role": "user", "content": "a red circle"}], {}, 9),
    ([shown("image", "audio")], {"images": PICTURES[:1], "sounds": SOUNDS[1:]}, 7),
    (
        [
            {"role": "system", "content": "one two three " * 60},
            shown("audio", text="a star"),
            {"role": "assistant", "content": "yes"},
            shown("video", "image"),
        ],
        {"images": PICTURES[1:], "sounds": SOUNDS[:1], "videos": [VIDEO]},
        12,
    ),
    ([{"role": "user", "content": "two"}], {}, 2),
)
"""Conversations, what they show, and how many tokens the answer that is spoken has."""


def pixels(pictures: Sequence[Image.Image], preparing: Mapping[str, Any]) -> dict[str, Tensor]:
    """Pictures as transformers prepares them, by these settings."""
    prepare = Qwen2VLImageProcessorPil(**{name: preparing[name] for name in SHOWING})
    made = prepare(list(pictures), return_tensors="pt")
    return {"pixel_values": made["pixel_values"], "image_grid_thw": made["image_grid_thw"]}


def moving(frames: Sequence[Image.Image], size: tuple[int, int]) -> dict[str, Tensor]:
    """Frames of a video, two a second, as transformers prepares them at this size: in patches of two frames."""
    p, m = 4, 2
    small = np.stack([np.array(frame.resize(size, Image.Resampling.BICUBIC)) for frame in frames]) / 255
    x = ((small - 0.5) / 0.5).transpose(0, 3, 1, 2).astype(np.float32)  # [frames, 3, H, W]
    t, h, w = len(x) // 2, x.shape[2] // p, x.shape[3] // p
    x = x.reshape(t, 2, 3, h // m, m, p, w // m, m, p).transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)
    grid = torch.tensor([[t, h, w]])
    values = torch.from_numpy(np.ascontiguousarray(x.reshape(t * h * w, -1)))
    return {"pixel_values_videos": values, "video_grid_thw": grid, "video_second_per_grid": torch.tensor([1.0])}


def spectra(sounds: Sequence[Any], **how: Any) -> dict[str, Tensor]:
    """Sounds as transformers prepares them, of which a model may say more about how."""
    waves = [samples_of(sound, 16_000, 1)[0] for sound in sounds]
    usual = {"padding": True, "truncation": False, "return_attention_mask": True, "return_tensors": "pt"}
    made = WhisperFeatureExtractor(feature_size=128)(waves, sampling_rate=16_000, **{**usual, **how})
    return {"input_features": made["input_features"], "feature_attention_mask": made["attention_mask"]}


def asked(
    folder: Path, template: str, talk: Talk, given: Mapping[str, Tensor], counts: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """What a thinker of transformers takes: a conversation with as many marks for what is shown as `counts` says by
    kind, and what was `given`.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False, chat_template=template)
    for kind, many in counts.items():
        before, *rest = text.split(f"<|{kind}_pad|>")
        text = before + "".join(f"<|{kind}_pad|>" * n + part for n, part in zip(many, rest, strict=True))
    ids = torch.tensor([tokenizer(text).input_ids])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **given}


@contextmanager
def in_company(folder: Path) -> Iterator[Omni]:
    """A checkpoint in which all requests share forwards, and slots are strict."""
    schedule = ScheduleConfig(strict_slots=True, company="always")
    config = Config(ModelConfig(str(folder), dtype="float32", device="cpu"), schedule=schedule)
    with Omni(str(folder), config=config) as made:
        yield made


def heard(result: Any) -> Tensor:
    """The sound of a result."""
    [sound] = [part.data for part in result.parts[0] if part.medium == "audio"]
    return torch.from_numpy(sound.samples)[0]


def begun(folder: Path, marked: Sequence[str], preparing: Mapping[str, Any]) -> Any:
    """Writes into `folder` how things are prepared, and the tokenizer, with the tokens `marked`; that is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = parts.qwen_tokenizer()
    tokenizer.add_tokens(["assistant", *marked])
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    for name, content in (("preprocessor_config.json", preparing), ("chat_template.json", {"chat_template": TEMPLATE})):
        (folder / name).write_text(json.dumps(content))
    return tokenizer


def saved(folder: Path, model: Any, tokenizer: Any) -> Path:
    """Writes the networks, and how they answer, into `folder`, and returns it."""
    model.save_pretrained(folder)
    told = {**GENERATION, "eos_token_id": [tokenizer.convert_tokens_to_ids("<|im_end|>")]}
    (folder / "generation_config.json").write_text(json.dumps(told))
    return folder


def thought(
    model: Any, folder: Path, prompt: str | Sequence[Mapping[str, str]], seed: int, choices: Mapping[str, Any]
) -> list[int]:
    """The tokens that the thinker of a `model` of transformers writes after a prompt, with all random numbers from
    `seed`.
    """
    told = json.loads((folder / "generation_config.json").read_text())
    ids = torch.tensor([prompt_ids(folder, prompt, TEMPLATE)])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found = model.thinker.generate(ids, attention_mask=torch.ones_like(ids), **{**told, **theirs(choices)})
    return [int(token) for token in found[0, ids.shape[1] :]]
