"""Qwen3, dense: a language model that continues a text and answers in a conversation."""
