"""Language models that no family here knows: transformers' own modules write, with the engine's rows and memory."""
