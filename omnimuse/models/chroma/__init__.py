"""Chroma: FLUX.1's blocks without its modulations, which one small network makes instead (lodestones/Chroma1-*)."""
