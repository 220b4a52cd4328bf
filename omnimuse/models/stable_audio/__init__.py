"""Stable Audio: sounds from text, by a transformer over latents of a waveform (stabilityai/stable-audio-open-1.0)."""
