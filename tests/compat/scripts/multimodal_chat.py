"""The study's script for models that think and talk, with the queries and the files of the examples that it lists."""

import argparse
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from omnimuse.compat.vllm.assets.audio import AudioAsset
from omnimuse.compat.vllm.assets.image import ImageAsset
from omnimuse.compat.vllm.assets.video import VideoAsset, video_to_ndarrays
from omnimuse.compat.vllm.multimodal.image import convert_image_mode
from omnimuse.compat.vllm.sampling_params import SamplingParams
from omnimuse.compat.vllm.utils.argparse_utils import FlexibleArgumentParser
from omnimuse.compat.vllm_omni.entrypoints.omni import Omni

SEED = 42
SYSTEM = "You are Qwen, a helpful assistant."
MARKS = {
    "qwen2_5_omni": {"image": "<|IMAGE|>", "audio": "<|AUDIO|>", "video": "<|VIDEO|>"},
    "qwen3_omni": {"image": "<|image_pad|>", "audio": "<|audio_pad|>", "video": "<|video_pad|>"},
}
TALKERS = {
    "qwen2_5_omni": {"top_p": 0.8, "top_k": 40, "max_tokens": 2048, "detokenize": True},
    "qwen3_omni": {"top_k": 50, "max_tokens": 4096, "detokenize": False},
}


def parser() -> argparse.ArgumentParser:
    made = FlexibleArgumentParser(description=__doc__)
    made.add_argument("--model", default="Qwen/Qwen3-Omni-30B-A3B-Instruct")
    made.add_argument("--kind", choices=MARKS, default="qwen3_omni")
    made.add_argument("--query-type", choices=["text", "use_image", "use_audio", "use_video"], default="text")
    made.add_argument("--image-path")
    made.add_argument("--audio-path")
    made.add_argument("--video-path")
    made.add_argument("--num-frames", type=int, default=16)
    made.add_argument("--talker-stop", type=int, nargs="+", default=[2150])
    made.add_argument("--max-tokens", type=int, default=512)
    made.add_argument("--num-prompts", type=int, default=1)
    made.add_argument("--modalities")
    made.add_argument("--stage-configs-path")
    made.add_argument("--output-dir", default="output_audio")
    made.add_argument("--enable-stats", action="store_true")
    made.add_argument("--init-timeout", type=int, default=300)
    made.add_argument("--batch-timeout", type=int, default=5)
    made.add_argument("--shm-threshold-bytes", type=int, default=65536)
    made.add_argument("--worker-backend", default="multi_process", choices=["multi_process", "ray"])
    return made


def query(args: argparse.Namespace) -> dict[str, object]:
    marks, shown, media = MARKS[args.kind], "", {}
    if args.query_type == "use_image":
        if args.image_path:
            media["image"] = convert_image_mode(Image.open(args.image_path), "RGB")
        else:
            media["image"] = convert_image_mode(ImageAsset("cherry_blossom").pil_image, "RGB")
    elif args.query_type == "use_audio":
        if args.audio_path:
            samples, rate = soundfile.read(args.audio_path, dtype="float32")
            media["audio"] = (samples.astype(np.float32), rate)
        else:
            media["audio"] = AudioAsset("mary_had_lamb").audio_and_sample_rate
    elif args.query_type == "use_video":
        if args.video_path:
            media["video"] = video_to_ndarrays(args.video_path, num_frames=args.num_frames)
        else:
            media["video"] = VideoAsset(name="baby_reading", num_frames=args.num_frames).np_ndarrays
    shown = "".join(marks[kind] for kind in media)
    prompt = (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
        f"<|im_start|>user\n{shown}Hello, who are you?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    return {"prompt": prompt, **({"multi_modal_data": media} if media else {})}


def main() -> None:
    args = parser().parse_args()
    omni = Omni(
        model=args.model,
        stage_configs_path=args.stage_configs_path,
        log_stats=args.enable_stats,
        log_file=("omni_llm_pipeline.log" if args.enable_stats else None),
        init_timeout=args.init_timeout,
        batch_timeout=args.batch_timeout,
        shm_threshold_bytes=args.shm_threshold_bytes,
        worker_backend=args.worker_backend,
    )
    sampling_params_list = [
        SamplingParams(
            temperature=0.4, top_p=0.9, top_k=-1, max_tokens=args.max_tokens, repetition_penalty=1.05, logit_bias={},
            seed=SEED,
        ),
        SamplingParams(
            temperature=0.9, seed=SEED, repetition_penalty=1.05, stop_token_ids=args.talker_stop, **TALKERS[args.kind]
        ),
        SamplingParams(
            temperature=0.0, top_p=1.0, top_k=-1, max_tokens=4096 * 16, seed=SEED, detokenize=True,
            repetition_penalty=1.1,
        ),
    ]  # fmt: skip
    prompts = [query(args) for _ in range(args.num_prompts)]
    if args.modalities is not None:
        for prompt in prompts:
            prompt["modalities"] = args.modalities.split(",")
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for stage_outputs in omni.generate(prompts, sampling_params_list):
        for output in stage_outputs.request_output:
            if stage_outputs.final_output_type == "text":
                text = f"Prompt:\n{output.prompt}\nvllm_text_output:\n{output.outputs[0].text.strip()}\n"
                (folder / f"{output.request_id}.txt").write_text(text, encoding="utf-8")
                print(f"Text of stage {stage_outputs.stage_id} saved")
            elif stage_outputs.final_output_type == "audio":
                wave = output.multimodal_output["audio"].float().detach().cpu().numpy()
                wave = wave.flatten() if wave.ndim > 1 else wave
                name = folder / f"output_{output.request_id}.wav"
                soundfile.write(name, wave, samplerate=24000, format="WAV")
                print(f"Sound of stage {stage_outputs.stage_id} saved: {len(wave)} samples")
    omni.close()


if __name__ == "__main__":
    main()
