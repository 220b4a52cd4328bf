"""Who runs next, and the loop that drives a worker. The scheduler imports no torch."""
