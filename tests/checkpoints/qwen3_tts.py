"""Tiny random checkpoints of Qwen3-TTS, in the layout of the published ones: `build(folder)`.

Talker of width 32 (two layers, two heads of 16 that share keys), 1056 codes of which the last 1024 are marks, frames of
four codes; predictor of width 24 (two layers); a codec of 24 samples a frame. Numbers depend on a tensor's published
name alone.

`../data/qwen3_tts.json` has, for every wish, what the published code makes of these checkpoints: `qwen-tts` 0.1.1 with
transformers 4.57.3, in float32 on a CPU, seeded with `torch.manual_seed`; the talker's `generate` with
`non_streaming_mode`, of its codes the codec's decoder's waveform; in the voice of a sound `generate_voice_clone`, with
what is said in that or without. A voice has as many heights as the configuration says, and not the 128 of that code.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from omnimuse.components.decoder import DenseDecoder
from omnimuse.components.speaker import SpeakerEncoder
from omnimuse.components.speech_codec import SpeechCodec
from omnimuse.components.speech_encoder import SpeechEncoder
from omnimuse.loader.tensors import construct
from omnimuse.models.qwen3_tts.transformer import Predictor, Talker
from tests.checkpoints import parts
from tests.checkpoints.wishes import Speaker, chord, voice

KEPT = Path(__file__).parent.parent / "data" / "qwen3_tts.json"

CODES, MARKS = 32, 1024
FIRST_MARK = CODES
VOICES = {"vivian": 1030, "eric": 1031}
LANGUAGES = {"english": 1040, "chinese": 1041, "sichuan_dialect": 1042}
PREDICTOR = {
    "vocab_size": CODES,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000,
    "num_code_groups": 4,
    "max_position_embeddings": 64,
}
TALKER = {
    "vocab_size": CODES + MARKS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000,
    "rope_scaling": {"interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default"},
    "max_position_embeddings": 2048,
    "num_code_groups": 4,
    "text_hidden_size": 40,
    "codec_eos_token_id": FIRST_MARK + 2,
    "codec_think_id": FIRST_MARK + 4,
    "codec_nothink_id": FIRST_MARK + 5,
    "codec_think_bos_id": FIRST_MARK + 6,
    "codec_think_eos_id": FIRST_MARK + 7,
    "codec_pad_id": FIRST_MARK,
    "codec_bos_id": FIRST_MARK + 1,
    "spk_id": VOICES,
    "spk_is_dialect": {"vivian": False, "eric": "sichuan_dialect"},
    "codec_language_id": LANGUAGES,
    "code_predictor_config": PREDICTOR,
}
SPEAKER = {
    "mel_dim": 8,
    "enc_dim": 32,
    "enc_channels": [8, 8, 8, 8, 24],
    "enc_attention_channels": 4,
    "enc_res2net_scale": 4,
    "enc_se_channels": 4,
}
CODEC = {
    "codebook_size": CODES,
    "codebook_dim": 8,
    "num_quantizers": 4,
    "latent_dim": 16,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 5,
    "upsample_rates": [3, 2],
    "upsampling_ratios": [2, 2],
    "decoder_dim": 16,
}
ENCODER = {
    "codebook_dim": 8,
    "codebook_size": CODES,
    "head_dim": 8,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_attention_heads": 2,
    "num_filters": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "num_quantizers": 6,
    "upsample_groups": 16,
    "sliding_window": 5,
    "upsampling_ratios": [8, 6, 5, 4],
    "vector_quantization_hidden_dimension": 8,
    "_frame_rate": 12.5,
}
"""It has more codebooks than are kept, and a window that the published code does not look at."""
GENERATION = {
    "do_sample": True,
    "temperature": 0.9,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.05,
    "subtalker_dosample": True,
    "subtalker_temperature": 0.9,
    "subtalker_top_k": 50,
    "subtalker_top_p": 1.0,
    "max_new_tokens": 256,
}


def codec_name(name: str) -> str:
    """What the published codec calls the tensor that is called so here."""
    name = re.sub(r"^(quantizer\.rvq_(?:first|rest))\.layers\.(\d+)\.", r"\1.vq.layers.\2._codebook.", name)
    return "decoder." + re.sub(r"\.mlp\.(gate|up|down)\.", r".mlp.\1_proj.", name)


def encoder_name(name: str) -> str:
    """What the published codec calls the tensor of its encoder that is called so here."""
    name = re.sub(r"^(semantic|acoustic)\.", r"quantizer.\1_residual_vector_quantizer.", name)
    name = re.sub(r"(layers\.\d+)\.(cluster_usage|embed)(?:ding)?(_sum)?$", r"\1.codebook.\2\3", name)
    return f"encoder.{name}"


def voice_name(prefix: str, name: str) -> str:
    """What the published model calls a tensor of the talker or the predictor, which are called `prefix`."""
    name = re.sub(r"\.mlp\.(gate|up|down)\.", r".mlp.\1_proj.", re.sub(r"^heads\.", "lm_head.", name))
    outside = name.startswith(("text_projection.", "codec_head.", "lm_head.", "small_to_mtp_projection."))
    return f"{prefix}.{name}" if outside else f"{prefix}.model.{name}"


def filled(name: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers that depend on the published name alone."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if name.endswith("cluster_usage"):
        return drawn.abs() + 0.5
    if name.endswith("decoder.4.conv.weight"):  # the last: hardly a sample is cut off at 1
        return 0.02 * drawn
    if name.startswith("encoder.encoder.") and len(shape) > 1:  # the codes of frames depend on what is heard
        return LOUD * drawn / drawn[0].numel() ** 0.5
    if len(shape) > 1:
        return drawn if "embedding" in name else drawn / drawn[0].numel() ** 0.5
    return 0.1 * drawn + (1.0 if name.endswith(("norm.weight", "scale", "gamma")) else 0.0)


def _saved(module: nn.Module, called: Any) -> dict[str, Tensor]:
    return {
        called(part): filled(called(part), shape)
        for name, tensor in module.state_dict().items()
        for part, shape in _parts(module, name, tuple(tensor.shape))
    }


def _parts(module: nn.Module, name: str, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    """The tensors of the published files that one of ours is made of, by our names, and their shapes."""
    if name.endswith(".gate_up.weight"):
        return [(name.replace("gate_up", part), (shape[0] // 2, shape[1])) for part in ("gate", "up")]
    if name.endswith(".qkv.weight"):
        assert isinstance(module, DenseDecoder)
        c = module.config
        heads = {"q": c.num_attention_heads, "k": c.num_key_value_heads, "v": c.num_key_value_heads}
        return [(name.replace("qkv", f"{part}_proj"), (count * c.head_dim, shape[1])) for part, count in heads.items()]
    return [(name, shape)]


def build(folder: Path, *, kind: str = "custom_voice", size: str = "1b7", **changes: Mapping[str, Any]) -> Path:
    """Writes the checkpoint into `folder` and returns it; `changes` go into parts of config.json."""
    beside = folder / "speech_tokenizer"
    beside.mkdir(parents=True, exist_ok=True)
    tokenizer = parts.qwen_tokenizer()
    tokenizer.add_tokens(["assistant", "<tts_pad>", "<tts_text_bos>", "<tts_text_eod>"])
    tokenizer.save_pretrained(folder)
    pad, start, end = tokenizer.convert_tokens_to_ids(["<tts_pad>", "<tts_text_bos>", "<tts_text_eod>"])
    config = {
        "architectures": ["Qwen3TTSForConditionalGeneration"],
        "model_type": "qwen3_tts",
        "tokenizer_type": "qwen3_tts_tokenizer_12hz",
        "tts_model_type": kind,
        "tts_model_size": size,
        "tts_pad_token_id": pad,
        "tts_bos_token_id": start,
        "tts_eos_token_id": end,
        "speaker_encoder_config": SPEAKER,
        "talker_config": {
            **TALKER,
            "text_vocab_size": len(tokenizer),
            **changes.get("talker", {}),
            "code_predictor_config": {**PREDICTOR, **changes.get("predictor", {})},
        },
    }
    codec = {
        "architectures": ["Qwen3TTSTokenizerV2Model"],
        "model_type": "qwen3_tts_tokenizer_12hz",
        "decoder_config": {**CODEC, **changes.get("codec", {})},
        "encoder_config": ENCODER,
        "encoder_valid_num_quantizers": 4,
        "encode_downsample_rate": 1920,
        "decode_upsample_rate": 24,
        "output_sample_rate": 2400,
    }
    for path, content in (
        (folder / "config.json", config),
        (folder / "generation_config.json", {**GENERATION, **changes.get("generation", {})}),
        (beside / "config.json", codec),
    ):
        path.write_text(json.dumps(content, indent=1))
    talker, predictor = (construct(lambda kind=kind: kind.from_config(config)) for kind in (Talker, Predictor))
    whole = _saved(talker, lambda name: voice_name("talker", name))
    whole |= _saved(predictor, lambda name: voice_name("talker.code_predictor", name))
    if kind == "base":
        whole |= _saved(construct(lambda: SpeakerEncoder.from_config(config)), lambda name: f"speaker_encoder.{name}")
    save_file(whole, folder / "model.safetensors", {"format": "pt"})
    both = _saved(SpeechCodec.from_config(codec), codec_name)
    both |= _saved(SpeechEncoder.from_config(codec), encoder_name) | _unread()
    save_file(both, beside / "model.safetensors", {"format": "pt"})
    return folder


def _unread() -> dict[str, Tensor]:
    """What the published codec has besides, and does not need to make codes of a sound."""
    kinds = {f"encoder.quantizer.{kind}_residual_vector_quantizer": many for kind, many in KINDS.items()}
    shapes: dict[str, tuple[int, ...]] = {f"{kind}.output_proj.weight": (16, 8, 1) for kind in kinds}
    shapes |= {f"{kind}.layers.{at}.codebook.initialized": (1,) for kind, many in kinds.items() for at in range(many)}
    return {name: filled(name, shape) for name, shape in shapes.items()}


KINDS = {"semantic": 1, "acoustic": 5}
LOUD = 1.8
SHORT = {"max_tokens": 12}
CLONED = (("a red circle on white", "auto", 7), ("a star", "english", 8), ("one two three " * 60, "auto", 9))
WISHES: Mapping[str, tuple[tuple[str, Mapping[str, Any], int], ...]] = {
    "custom_voice": (
        ("a red circle on a white square", {"voice": "vivian", **SHORT}, 1),
        ("two yellow stars", {"voice": "eric", "language": "auto", **SHORT}, 2),
        (
            "a green star and a blue heart",
            {
                "voice": "vivian",
                "language": "english",
                "instructions": "say it slowly",
                "temperature": 0,
                "code_temperature": 0,
                **SHORT,
            },
            3,
        ),
        (
            "one two three " * 60,
            {
                "voice": "Eric",
                "language": "chinese",
                "temperature": 0.7,
                "top_k": 20,
                "top_p": 0.8,
                "repetition_penalty": 1.3,
                "code_temperature": 1.2,
                "code_top_k": 10,
                "code_top_p": 0.9,
                **SHORT,
            },
            4,
        ),
        ("one two", {}, 6),
    ),
    "base": (
        *((text, {"language": language, **SHORT}, seed) for text, language, seed in CLONED),
        ("a star", {"language": "english", "ref_text": "one two three", **SHORT}, 10),
        ("two yellow stars and a red circle", {"ref_text": "one two three " * 12, **SHORT}, 11),
    ),
    "voice_design": (("a red circle", {"instructions": "an old, deep voice", **SHORT}, 5),),
}
"""By kind of checkpoint. The last of the first kind ends by itself; the last two of the second go on as a sound does,
which has more frames than the text of one has tokens, and fewer than that of the other.
"""


SOUNDS = (voice(24_000, 1.3), chord(24_000, 3.3, 1), chord(24_000, 0.5, 1))
"""Of which codes are made."""


def encoded() -> list[Tensor]:
    """The codes [T, Q] that the published code makes of `SOUNDS`."""
    return [torch.tensor(each) for each in json.loads(KEPT.read_text())["encoded"]]


def kept(kind: str) -> list[tuple[Tensor, Tensor]]:
    """What the published code makes of the wishes of a kind."""
    found = json.loads(KEPT.read_text())[kind]
    return [(torch.tensor(each["codes"]).T, torch.tensor(each["wave"])) for each in found]


SPEAKERS = tuple(
    Speaker(
        "Qwen3TTSForConditionalGeneration",
        partial(build, kind=kind),
        wishes,
        partial(kept, kind),
        kind,
        chord(24_000, 1.5, 1) if kind == "base" else None,
    )
    for kind, wishes in WISHES.items()
)
