"""FLUX.2 dev: the largest FLUX.2, whose texts a large language model reads (black-forest-labs/FLUX.2-dev)."""
