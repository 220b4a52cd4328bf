"""From a name to filled networks: resolve a model, read its checkpoint, stream its weights, build library components.

The worker's build passes call in here; `resolve` and `checkpoint` (no torch) serve the command line and the server too.
"""
