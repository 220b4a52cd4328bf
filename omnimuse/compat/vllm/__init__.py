"""`vllm` by another root: the names of it that files of the contract import, where it has them (docs/compat.md)."""
