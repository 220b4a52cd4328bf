"""A pipeline, an attention backend and a solver. Nothing heavy is imported here: front processes read this file."""
