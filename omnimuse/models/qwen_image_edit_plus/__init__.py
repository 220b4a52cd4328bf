"""Qwen-Image-Edit from 2509 on: a picture made of several, as a text says (Qwen/Qwen-Image-Edit-2509, -2511)."""
