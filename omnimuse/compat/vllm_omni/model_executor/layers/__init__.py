"""`vllm_omni.model_executor.layers`."""
