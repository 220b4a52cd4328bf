"""`vllm_omni.diffusion.models`."""
