"""FLUX.2: double-stream, then single-stream transformers that draw from text and pictures (black-forest-labs/FLUX.2-*).

This folder has what its kinds share, and Klein, whose texts a small language model reads.
"""
