"""FLUX.1 Fill: FLUX.1 that fills in a part of a picture, and sees the rest (black-forest-labs/FLUX.1-Fill-dev)."""
