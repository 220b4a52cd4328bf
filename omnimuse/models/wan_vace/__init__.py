"""Wan VACE: Wan with a second chain of blocks for what is given: a video, a mask, pictures (Wan-AI/Wan2.1-VACE)."""
