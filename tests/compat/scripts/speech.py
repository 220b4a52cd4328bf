"""Qwen3-TTS, in its three kinds, as the example that the study lists asks for them, with asyncio or without."""

import argparse
import asyncio
from pathlib import Path

import soundfile
import torch

from omnimuse.compat.vllm_omni import AsyncOmni, Omni


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--model", default="Qwen/Qwen3-TTS-12Hz-1.7B-CustomVoice")
    made.add_argument("--query-type", default="CustomVoice", choices=["CustomVoice", "VoiceDesign", "Base"])
    made.add_argument("--mode-tag", default="icl", choices=["icl", "xvec_only"])
    made.add_argument("--ref-audio")
    made.add_argument("--max-new-tokens", type=int, default=2048)
    made.add_argument("--streaming", action="store_true")
    made.add_argument("--output-dir", default="output_audio")
    made.add_argument("--stage-configs-path")
    return made


def queries(args: argparse.Namespace) -> list[dict[str, object]]:
    kind = args.query_type
    if kind == "CustomVoice":
        said = [
            ("She said she would be here by noon.", "Very happy.", "English", "Eric"),
            ("Really?", "", "Auto", "Vivian"),
        ]
        told = [
            {"text": [text], "instruct": [instruct], "language": [language], "speaker": [speaker]}
            for text, instruct, language, speaker in said
        ]
    elif kind == "VoiceDesign":
        how = "Speak in an incredulous tone, but with a hint of panic."
        told = [
            {
                "text": ["It's in the top drawer."],
                "language": ["English"],
                "instruct": [how],
                "non_streaming_mode": [True],
            }
        ]
    else:
        told = [
            {
                "ref_audio": [args.ref_audio],
                "ref_text": ["Okay. Yeah."],
                "text": ["Good one. Goodbye."],
                "language": ["Auto"],
                "x_vector_only_mode": [args.mode_tag == "xvec_only"],
            }
        ]
    return [
        {
            "prompt_token_ids": [0] * 2048,
            "additional_information": {"task_type": [kind], **each, "max_new_tokens": [args.max_new_tokens]},
        }
        for each in told
    ]


def save(folder: Path, request_id: str, made: dict[str, object]) -> None:
    audio, rate = made["audio"], made["sr"]
    rate = rate[-1] if isinstance(rate, list) and rate else rate
    rate = rate.item() if hasattr(rate, "item") else int(rate)
    wave = torch.cat(audio, dim=-1) if isinstance(audio, list) else audio
    name = folder / f"output_{request_id}.wav"
    soundfile.write(name, wave.float().cpu().numpy().flatten(), samplerate=rate, format="WAV")
    print(f"Saved audio: {wave.shape[-1]} samples at {rate}")


async def streamed(args: argparse.Namespace, options: dict[str, object], folder: Path) -> None:
    omni = AsyncOmni(model=args.model, **options)
    for number, prompt in enumerate(queries(args)):
        async for stage_output in omni.generate(prompt, request_id=str(number)):
            if stage_output.finished:
                save(folder, stage_output.request_id, stage_output.request_output.outputs[0].multimodal_output)
    await omni.shutdown()


def main() -> None:
    args = parser().parse_args()
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "stage_configs_path": args.stage_configs_path,
        "log_stats": False,
        "stage_init_timeout": 300,
        "enable_diffusion_pipeline_profiler": False,
    }
    if args.streaming:
        asyncio.run(streamed(args, options, folder))
        return
    with Omni(model=args.model, **options) as omni:
        for stage_outputs in omni.generate(queries(args)):
            for output in stage_outputs.request_output:
                save(folder, output.request_id, output.outputs[0].multimodal_output)


if __name__ == "__main__":
    main()
