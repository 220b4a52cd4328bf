"""`vllm_omni.diffusion.attention`."""
