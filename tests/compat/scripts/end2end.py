"""The offline example that the newer guide asks for: its flags, and files with names that are known before."""

import argparse

from omnimuse.compat.vllm_omni.entrypoints.omni import Omni
from omnimuse.compat.vllm_omni.inputs.data import OmniDiffusionSamplingParams


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--model", required=True)
    made.add_argument("--modality", choices=["text2img"], default="text2img")
    made.add_argument("--prompts", nargs="+", default=["A cute cat"])
    made.add_argument("--steps", type=int, default=2)
    return made


def main() -> None:
    args = parser().parse_args()
    with Omni(model=args.model) as omni:
        outputs = omni.generate(args.prompts, OmniDiffusionSamplingParams(num_inference_steps=args.steps, seed=0))
    for number, output in enumerate(outputs):
        for place, image in enumerate(output.images):
            image.save(f"output_{number}_{place}.png")
            print(f"output_{number}_{place}.png")


if __name__ == "__main__":
    main()
