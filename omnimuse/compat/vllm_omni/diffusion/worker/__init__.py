"""`vllm_omni.diffusion.worker`."""
