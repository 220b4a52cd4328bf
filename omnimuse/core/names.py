"""What other programs call the things that people choose here: one table of meanings, for aliases and for hints.

Read by the command line, which takes these names as options, and by whoever refuses a name and wants to say which one
was meant. A name is here only if it means exactly the same. No torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from types import MappingProxyType

_OURS: dict[str, str] = {
    "prompt": "prompts text positive_prompt",
    "negative_prompt": "negative neg_prompt negative_text uc",
    "images": "image image_path image_paths init_image input_image reference_image start_image",
    "audio": "audio_path init_audio input_audio reference_audio",
    "num_inference_steps": "steps num_steps inference_steps infer_steps sampling_steps sample_steps ddim_steps",
    "guidance_scale": "guidance cfg guidance_strength sample_guide_scale",
    "guidance_scale_2": "guidance_2 cfg_2",
    "true_cfg_scale": "true_cfg",
    "height": "image_height video_height",
    "width": "image_width video_width",
    "num_frames": "frames frame_num frame_count n_frames video_length",
    "fps": "frame_rate framerate",
    "seconds": "audio_length audio_length_in_s audio_duration seconds_total",
    "seed": "random_seed noise_seed manual_seed base_seed",
    "num_outputs_per_prompt": "n number num_outputs num_images num_images_per_prompt num_videos_per_prompt n_samples",
    "max_sequence_length": "text_len max_text_len max_text_length",
    "strength": "denoise denoising_strength img2img_strength image_strength",
    "flow_shift": "shift sample_shift timestep_shift time_shift",
    "boundary_ratio": "boundary",
    "scheduler": "sampler sampler_name sample_solver scheduler_type scheduler_name",
    "output": "output_path output_file output_dir out save_path save_file outdir",
    "model": "model_path model_id model_name_or_path pretrained_model_name_or_path ckpt checkpoint",
    "file": "prompt_file prompts_file prompt_path prompt_file_path from_file",
}

MEANINGS: Mapping[str, str] = MappingProxyType({name: ours for ours, names in _OURS.items() for name in names.split()})
"""Another program's name -> ours; all with underscores, in lower case."""


def meant(name: str, allowed: Collection[str]) -> str | None:
    """The one of `allowed` that `name` stands for: by its meaning, else by its spelling; None if nothing is near."""
    plain = name.strip().lstrip("-").replace("-", "_").lower()
    for known in (plain, MEANINGS.get(plain, "")):
        if known in allowed:
            return known
    near = get_close_matches(name, list(allowed), n=1) or get_close_matches(plain, list(allowed), n=1)
    if near:
        return near[0]
    close = get_close_matches(plain, list(MEANINGS), n=1, cutoff=0.8)
    return MEANINGS[close[0]] if close and MEANINGS[close[0]] in allowed else None
