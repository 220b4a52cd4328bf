"""`vllm_omni.diffusion.model_loader`."""
