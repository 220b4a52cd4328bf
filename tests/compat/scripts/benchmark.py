"""The older guide's benchmark: the time of a library's pipeline is measured before, by the same calls."""

import sys
import time

from omnimuse.compat.vllm_omni import Omni
from omnimuse.compat.vllm_omni.inputs.data import OmniDiffusionSamplingParams

model_name = sys.argv[1]

omni = Omni(model=model_name)
start = time.time()
_ = omni.generate(
    prompts=["a cat"],
    sampling_params=OmniDiffusionSamplingParams(num_inference_steps=50),
)
time_vllm_omni = time.time() - start

print(f"vLLM-Omni: {time_vllm_omni:.2f}s")
