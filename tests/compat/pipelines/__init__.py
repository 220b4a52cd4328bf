"""Pipelines written as the guide of vLLM-Omni has it, but for the root of their imports: a plugin, for the tests."""
