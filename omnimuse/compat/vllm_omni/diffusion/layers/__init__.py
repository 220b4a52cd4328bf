"""`vllm_omni.diffusion.layers`."""
