"""Parts with weights that models are built from, and the contracts of blocks, stacks and networks."""
