"""FLUX.1 dev and schnell: double-stream, then single-stream text-to-image transformers (black-forest-labs/FLUX.1-*)."""
