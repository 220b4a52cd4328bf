"""`vllm_omni.entrypoints`."""
