"""`vllm.model_executor.models`."""
