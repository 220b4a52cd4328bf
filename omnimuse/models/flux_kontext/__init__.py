"""FLUX.1 Kontext: FLUX.1 that is shown a picture beside the one it draws (black-forest-labs/FLUX.1-Kontext-*)."""
