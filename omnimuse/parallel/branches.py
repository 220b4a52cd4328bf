"""TEMPORARY placeholder by the lead; overwrite freely."""
def share(*a): raise NotImplementedError
