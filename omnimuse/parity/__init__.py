"""A family beside the reference implementation of diffusers: same weights, noise and parameters, compared part by part.

`omnimuse parity MODEL` and the parity tests use it; nothing that draws for people does.
"""
