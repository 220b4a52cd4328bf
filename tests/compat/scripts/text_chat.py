"""A model that only writes, asked as one asks vLLM: prompts and one set of sampling parameters for all of them."""

import sys

from omnimuse.compat.vllm import SamplingParams
from omnimuse.compat.vllm_omni.entrypoints.omni import Omni

if __name__ == "__main__":
    omni = Omni(model=sys.argv[1], gpu_memory_utilization=0.9, max_model_len=2048, tensor_parallel_size=1, seed=None)
    prompts = ["a red circle", "two blue squares"]
    sampling_params = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=12, seed=7)
    for output in omni.generate(prompts, sampling_params):
        generated = output.request_output[0].outputs[0]
        print(f"Prompt: {output.prompt!r}, tokens: {len(generated.token_ids)}, ended: {generated.finish_reason}")
