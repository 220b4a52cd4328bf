"""A plugin as SGLang Diffusion's guide has people write it, by our import root: it imports nothing heavy by itself."""
