"""Stable Diffusion 3 and 3.5: two streams, and three text encoders (stabilityai/stable-diffusion-3*)."""
