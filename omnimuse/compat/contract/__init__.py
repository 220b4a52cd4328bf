"""Pipelines that were written to the guide of vLLM-Omni, as models of ours (docs/compat.md).

Their files import `compat/vllm_omni` and `compat/vllm`, where the guide's names are; here is what makes a spec and a
pipeline of such a file: `entries.py` knows who was registered, `source.py` reads a class without importing it,
`spec.py` says what it can be asked for, `make.py` makes it and reads its weights, `pipeline.py` has its stages.
"""
