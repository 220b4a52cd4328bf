"""Z-Image: a single-stream text-to-image transformer (Tongyi-MAI/Z-Image, Z-Image-Turbo)."""
