"""How names in a published LTX-2 transformer checkpoint (diffusers layout) become ours. A table for the loader."""

from __future__ import annotations

from omnimuse.loader.rules import Alias, Fuse, Rename, joined

BLOCK = r"^(blocks\.\d+)\."


def _part(prefix: str, part: str) -> tuple[Rename, ...]:
    """Names of the video have no prefix, and those of the sound have one."""
    return (
        Rename(rf"^{prefix}(proj_in\.|proj_out\.|scale_shift_table$)", rf"{part}.\1"),
        Rename(rf"^{prefix}caption_projection\.linear_1\.", f"{part}.caption.0."),
        Rename(rf"^{prefix}caption_projection\.linear_2\.", f"{part}.caption.2."),
        Rename(rf"^{prefix}time_embed\.", f"{part}.clock."),
        Rename(rf"{BLOCK}{prefix}attn1\.", rf"\1.{part}.attention."),
        Rename(rf"{BLOCK}{prefix}attn2\.", rf"\1.{part}.text_attention."),
        Rename(rf"{BLOCK}{prefix}ff\.net\.0\.proj\.", rf"\1.{part}.mlp.0."),
        Rename(rf"{BLOCK}{prefix}ff\.net\.2\.", rf"\1.{part}.mlp.2."),
        Rename(rf"{BLOCK}{prefix}scale_shift_table$", rf"\1.{part}.scale_shift_table"),
    )


RULES: tuple[Rename | Fuse, ...] = (
    Rename(r"^transformer_blocks\.", "blocks."),
    *_part("audio_", "sound"),
    *_part("", "video"),
    Rename(r"^av_cross_attn_video_(scale_shift|a2v_gate)\.", r"video.\1."),
    Rename(r"^av_cross_attn_audio_(scale_shift|v2a_gate)\.", r"sound.\1."),
    Rename(r"^(video|sound)\.scale_shift\.", r"\1.meeting_clock."),
    Rename(r"^(video|sound)\.(?:a2v|v2a)_gate\.", r"\1.gate_clock."),
    Rename(r"\.emb\.timestep_embedder\.", ".embedder."),
    Rename(BLOCK + r"video_a2v_cross_attn_scale_shift_table$", r"\1.video.meeting_table"),
    Rename(BLOCK + r"audio_a2v_cross_attn_scale_shift_table$", r"\1.sound.meeting_table"),
    Rename(BLOCK + r"audio_to_video_attn\.", r"\1.to_video."),
    Rename(BLOCK + r"video_to_audio_attn\.", r"\1.to_sound."),
    Rename(r"\.to_out\.0\.", ".to_out."),
    *joined("to_*", "kv", "to_kv"),
)

_CLOCK = r"\.(emb\.timestep_embedder\.linear_[12]|linear)"
ALIASES: tuple[Alias, ...] = (
    Alias(r"(audio_|)patchify_proj", (r"\1proj_in",)),
    Alias(rf"(audio_|)adaln_single{_CLOCK}", (r"\1time_embed.\2",)),
    Alias(rf"av_ca_(video|audio)_scale_shift_adaln_single{_CLOCK}", (r"av_cross_attn_\1_scale_shift.\2",)),
    Alias(rf"av_ca_a2v_gate_adaln_single{_CLOCK}", (r"av_cross_attn_video_a2v_gate.\1",)),
    Alias(rf"av_ca_v2a_gate_adaln_single{_CLOCK}", (r"av_cross_attn_audio_v2a_gate.\1",)),
    Alias(r"aggregate_embed", ("text_proj_in",)),  # of the connectors
)
"""What adapters call its layers by the names of the first published code, where they are others."""
