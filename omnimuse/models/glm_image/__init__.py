"""GLM-Image: a language model writes what is in a picture, a transformer draws it (zai-org/GLM-Image)."""
