"""Lumina-Image 2.0: one stream of caption and image tokens, read by Gemma 2 (Alpha-VLLM/Lumina-Image-2.0)."""
