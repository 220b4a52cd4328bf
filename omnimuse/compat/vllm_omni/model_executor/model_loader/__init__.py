"""`vllm_omni.model_executor.model_loader`."""
