"""One module per group of endpoints; each has `routes(service)`."""
