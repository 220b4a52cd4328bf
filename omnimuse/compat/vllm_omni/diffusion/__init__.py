"""`vllm_omni.diffusion`."""
