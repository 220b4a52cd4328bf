"""`vllm_omni.diffusion.distributed`."""
