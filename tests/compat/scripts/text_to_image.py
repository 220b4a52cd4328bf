"""Text to image, offline: the options, the calls and the shapes of the older guide's example."""

import argparse
from pathlib import Path

from omnimuse.compat.vllm_omni import Omni
from omnimuse.compat.vllm_omni.inputs.data import OmniDiffusionSamplingParams

OPTIONS = (
    ("--model", str, "your-org/your-model-name"),
    ("--prompt", str, "a mountain lake in the morning"),
    ("--negative-prompt", str, "blurry, low quality"),
    ("--num-inference-steps", int, 50),
    ("--guidance-scale", float, 7.5),
    ("--height", int, 512),
    ("--width", int, 512),
    ("--output-dir", str, "./outputs"),
    ("--seed", int, 42),
)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    for name, kind, usual in OPTIONS:
        made.add_argument(name, type=kind, default=usual)
    return made


def main() -> None:
    args = parser().parse_args()
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)

    omni = Omni(model=args.model, trust_remote_code=True)
    sampling_params = OmniDiffusionSamplingParams(
        num_inference_steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale,
        height=args.height,
        width=args.width,
        seed=args.seed,
    )
    outputs = omni.generate(
        prompts=[args.prompt],
        negative_prompts=[args.negative_prompt] if args.negative_prompt else None,
        sampling_params=sampling_params,
    )
    for i, output in enumerate(outputs):
        image = output.outputs[0]
        output_path = output_dir / f"generated_{i}.png"
        image.save(output_path)
        print(f"Saved image to: {output_path}")


if __name__ == "__main__":
    main()
