"""Wan: a video transformer that reads its prompt by cross attention (Wan-AI/Wan2.1-T2V, Wan2.2-T2V-A14B, TI2V-5B)."""
