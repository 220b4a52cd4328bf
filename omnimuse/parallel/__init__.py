"""Several ranks on one engine: the mesh, and what the ranks tell one another. Knows no model, row or request."""
