"""Qwen2.5-Omni: a language model that reads, listens and sees, and answers in text and aloud."""
