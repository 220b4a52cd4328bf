"""Pictures to look at, as the older guide has them drawn, into the folder where it runs."""

import sys

from omnimuse.compat.vllm_omni import Omni
from omnimuse.compat.vllm_omni.inputs.data import OmniDiffusionSamplingParams

omni = Omni(model=sys.argv[1])

test_prompts = [
    "a photorealistic portrait of a person",
    "an abstract painting with vibrant colors",
    "a futuristic cityscape at night",
    "a cute puppy playing in grass",
]

for i, prompt in enumerate(test_prompts):
    outputs = omni.generate(
        prompts=[prompt],
        sampling_params=OmniDiffusionSamplingParams(
            num_inference_steps=50,
            guidance_scale=7.5,
            seed=42,
        ),
    )
    outputs[0].outputs[0].save(f"test_output_{i}.png")
    print(f"Generated: {prompt}")
