"""A fleet of engines on a clock of its own: what a load would see, without a model and in less time."""
