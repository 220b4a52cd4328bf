"""`vllm_omni.diffusion.utils`."""
