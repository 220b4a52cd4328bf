"""`vllm_omni.inputs`."""
