"""Ovis-Image: pictures with much text in them, from a prompt (AIDC-AI/Ovis-Image-7B)."""
