"""A step cache, as the skill has people try it, and the options of memory that the study names."""

import sys

from omnimuse.compat.vllm_omni import Omni
from omnimuse.compat.vllm_omni.inputs.data import OmniDiffusionSamplingParams

omni = Omni(
    model=sys.argv[1],
    cache_backend="cache_dit",
    cache_config={
        "Fn_compute_blocks": 1,
        "Bn_compute_blocks": 0,
        "max_warmup_steps": 4,
        "residual_diff_threshold": 0.24,
    },
)
images = omni.generate("a beautiful landscape", OmniDiffusionSamplingParams(num_inference_steps=50))

omni = Omni(
    model=sys.argv[1],
    enable_layerwise_offload=True,
    layerwise_num_gpu_layers=1,
)
images += omni.generate(
    "a beautiful landscape", OmniDiffusionSamplingParams(height=64, width=64, num_inference_steps=2)
)

omni = Omni(
    model=sys.argv[1],
    vae_use_slicing=True,
    vae_use_tiling=True,
)
images += omni.generate(
    "a beautiful landscape", OmniDiffusionSamplingParams(height=64, width=64, num_inference_steps=2)
)
print(len(images))
