"""Weights in fewer bits: how rows of numbers are packed, and linear layers that compute with them."""
