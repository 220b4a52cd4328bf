"""Any pipeline of diffusers that no family covers: it runs through the library itself, as one call per output.

`source.py` reads the class without importing it, `spec.py` makes the spec from that (no torch so far); `read.py` reads
components as the library does, `load.py` makes its own pipeline of them; `call.py` lets a call stand still between its
steps, `pipeline.py` makes stages of it.
"""
