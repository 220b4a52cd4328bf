"""`vllm.model_executor`."""
