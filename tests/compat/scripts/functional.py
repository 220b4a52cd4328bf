"""The functional tests that the older guide has people write for their model."""

import sys

from PIL import Image

from omnimuse.compat.vllm_omni import Omni
from omnimuse.compat.vllm_omni.inputs.data import OmniDiffusionSamplingParams


def text_to_image(model: str) -> None:
    """Test basic text-to-image generation."""
    omni = Omni(model=model)

    outputs = omni.generate(
        prompts=["a cat"],
        sampling_params=OmniDiffusionSamplingParams(
            num_inference_steps=20,
            height=512,
            width=512,
            seed=42,
        ),
    )

    assert len(outputs) == 1
    assert len(outputs[0].outputs) == 1
    image = outputs[0].outputs[0]
    assert isinstance(image, Image.Image)
    assert image.size == (512, 512)


def batching(model: str, batch_size: int) -> None:
    """Test batched generation."""
    omni = Omni(model=model)

    prompts = [f"image {i}" for i in range(batch_size)]
    outputs = omni.generate(
        prompts=prompts,
        sampling_params=OmniDiffusionSamplingParams(
            num_inference_steps=20,
        ),
    )

    assert len(outputs) == batch_size
    for output in outputs:
        assert isinstance(output.outputs[0], Image.Image)


def guidance_scale(model: str) -> None:
    """Test different guidance scales."""
    omni = Omni(model=model)

    for guidance_scale in [1.0, 5.0, 10.0]:
        outputs = omni.generate(
            prompts=["a cat"],
            sampling_params=OmniDiffusionSamplingParams(
                num_inference_steps=20,
                guidance_scale=guidance_scale,
                seed=42,
            ),
        )
        assert len(outputs) == 1


if __name__ == "__main__":
    text_to_image(sys.argv[1])
    for size in (1, 2, 4):
        batching(sys.argv[1], size)
    guidance_scale(sys.argv[1])
