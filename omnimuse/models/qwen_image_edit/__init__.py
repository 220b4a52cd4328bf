"""Qwen-Image-Edit: a picture changed as a text says (Qwen/Qwen-Image-Edit)."""
