"""BAGEL, in its four modalities, as the example that the study lists asks for them."""

import argparse
from pathlib import Path

from PIL import Image

from omnimuse.compat.vllm_omni.diffusion.data import DiffusionParallelConfig
from omnimuse.compat.vllm_omni.entrypoints.omni import Omni


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--model", default="ByteDance-Seed/BAGEL-7B-MoT")
    made.add_argument("--prompts", nargs="+", default=["A cute cat"])
    made.add_argument("--modality", default="text2img", choices=["text2img", "img2img", "img2text", "text2text"])
    made.add_argument("--image-path")
    made.add_argument("--output", default=".")
    made.add_argument("--stage-configs-path")
    made.add_argument("--steps", type=int, default=50)
    made.add_argument("--cfg-text-scale", type=float, default=4.0)
    made.add_argument("--cfg-img-scale", type=float, default=1.5)
    made.add_argument("--cfg-parallel-size", type=int, default=1)
    made.add_argument("--seed", type=int)
    made.add_argument("--max-tokens", type=int)
    made.add_argument("--worker-backend", default="process", choices=["process", "ray"])
    return made


def prompt_of(text: str, args: argparse.Namespace) -> dict[str, object]:
    if args.modality == "text2img":
        return {"prompt": f"<|im_start|>{text}<|im_end|>", "modalities": ["image"]}
    if args.modality == "text2text":
        told = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        return {"prompt": told, "modalities": ["text"]}
    image = Image.open(args.image_path).convert("RGB")
    if args.modality == "img2img":
        return {
            "prompt": f"<|fim_middle|><|im_start|>{text}<|im_end|>",
            "multi_modal_data": {"img2img": image},
            "modalities": ["img2img"],
        }
    told = f"<|im_start|>user\n<|image_pad|>\n{text}<|im_end|>\n<|im_start|>assistant\n"
    return {"prompt": told, "multi_modal_data": {"image": image}, "modalities": ["text"]}


def main() -> None:
    args = parser().parse_args()
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    more = {"stage_configs_path": args.stage_configs_path} if args.stage_configs_path else {}
    omni = Omni(
        model=args.model,
        log_stats=False,
        init_sleep_seconds=20,
        batch_timeout=5,
        init_timeout=300,
        shm_threshold_bytes=65536,
        worker_backend=args.worker_backend,
        ray_address=None,
        parallel_config=DiffusionParallelConfig(cfg_parallel_size=1, vae_patch_parallel_size=1),
        vae_use_tiling=False,
        enable_diffusion_pipeline_profiler=False,
        **more,
    )
    params_list = omni.default_sampling_params_list
    if args.modality in ("text2img", "img2img"):
        params_list[0].max_tokens = 1
        if len(params_list) > 1:
            drawn = params_list[1]
            drawn.num_inference_steps = args.steps
            drawn.cfg_parallel_size = args.cfg_parallel_size
            if args.seed is not None:
                drawn.seed = args.seed
            drawn.extra_args = {"cfg_text_scale": args.cfg_text_scale, "cfg_img_scale": args.cfg_img_scale}
    elif args.max_tokens is not None:
        params_list[0].max_tokens = args.max_tokens
    prompts = [prompt_of(text, args) for text in args.prompts]
    for number, output in enumerate(list(omni.generate(prompts=prompts, sampling_params_list=params_list))):
        for place, image in enumerate(output.images or ()):
            image.save(folder / f"output_{number}_{place}.png")
        if output.final_output_type == "text":
            print(f"Text: {output.request_output[0].outputs[0].text!r}")
    print(f"stages: {len(params_list)}")


if __name__ == "__main__":
    main()
