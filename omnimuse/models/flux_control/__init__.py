"""FLUX.1 Depth and Canny: FLUX.1 that follows a picture of depths or of edges (black-forest-labs/FLUX.1-Depth-dev)."""
