"""GLM-Image, the part that draws: a transformer that is told every patch by a language model (zai-org/GLM-Image)."""
