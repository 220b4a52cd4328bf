"""TEMPORARY placeholder by the lead; overwrite freely."""
def broadcast_bytes(mesh, payload): raise NotImplementedError
