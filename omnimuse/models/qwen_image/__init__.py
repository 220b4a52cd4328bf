"""Qwen-Image: transformers of two streams with a language model for a text encoder (Qwen/Qwen-Image*)."""
