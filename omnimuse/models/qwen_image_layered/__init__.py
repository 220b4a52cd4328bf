"""Qwen-Image-Layered: a picture taken apart into layers that can be seen through (Qwen/Qwen-Image-Layered)."""
