"""GLM-Image, whose language model writes first what is in the picture: sampling parameters for both of its stages."""

import argparse
import json
from pathlib import Path

from PIL import Image

from omnimuse.compat.vllm import SamplingParams
from omnimuse.compat.vllm_omni.diffusion.data import DiffusionParallelConfig
from omnimuse.compat.vllm_omni.entrypoints.omni import Omni
from omnimuse.compat.vllm_omni.inputs.data import OmniDiffusionSamplingParams


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--model-path", default="zai-org/GLM-Image")
    made.add_argument("--config-path")
    made.add_argument("--prompt", required=True)
    made.add_argument("--image")
    made.add_argument("--output", default="output_glm_image.png")
    made.add_argument("--height", type=int)
    made.add_argument("--width", type=int)
    made.add_argument("--num-inference-steps", type=int, default=50)
    made.add_argument("--guidance-scale", type=float, default=1.5)
    made.add_argument("--seed", type=int, default=42)
    made.add_argument("--max-tokens", type=int, default=1281)
    made.add_argument("--num-prompts", type=int, default=1)
    return made


def main() -> None:
    args = parser().parse_args()
    image = Image.open(args.image).convert("RGB") if args.image else None
    height = args.height or (image.height if image else 1024)
    width = args.width or (image.width if image else 1024)
    prompt = {
        "prompt": args.prompt,
        **({"multi_modal_data": {"image": image}} if image else {}),
        "height": height,
        "width": width,
        "mm_processor_kwargs": {"target_h": height, "target_w": width},
        "seed": args.seed,
        "num_inference_steps": args.num_inference_steps,
        "guidance_scale": args.guidance_scale,
    }
    omni = Omni(
        model=args.model_path,
        stage_configs_path=args.config_path,
        log_stats=False,
        stage_init_timeout=600,
        parallel_config=DiffusionParallelConfig(cfg_parallel_size=1, vae_patch_parallel_size=1),
        vae_use_tiling=False,
        enable_diffusion_pipeline_profiler=False,
    )
    told = json.loads(Path(args.model_path, "vision_language_encoder", "generation_config.json").read_text())
    sampling_params_list = [
        SamplingParams(
            temperature=told["temperature"], top_p=told["top_p"], top_k=told.get("top_k", -1),
            max_tokens=args.max_tokens, stop_token_ids=[told["eos_token_id"]], seed=args.seed, detokenize=False,
        ),
        OmniDiffusionSamplingParams(
            num_inference_steps=args.num_inference_steps, guidance_scale=args.guidance_scale, height=height,
            width=width, seed=args.seed,
        ),
    ]  # fmt: skip
    count = 0
    for stage_outputs in omni.generate([prompt] * args.num_prompts, sampling_params_list, py_generator=True):
        output = stage_outputs.request_output
        if stage_outputs.final_output_type == "image":
            images = output.images if hasattr(output, "images") else []
            for number, made in enumerate(images):
                path = Path(args.output)
                made.save(path if args.num_prompts == 1 else path.with_stem(f"{path.stem}_{count}_{number}"))
                count += 1
                print(f"Image of stage {stage_outputs.stage_id}, request {bool(output.request_id)}")
    print(f"Generated {count} image(s)")
    omni.close()


if __name__ == "__main__":
    main()
