"""`vllm_omni.diffusion.attention.backends`."""
