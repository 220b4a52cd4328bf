"""What writes one token after the other: the memory of what was read, and the choice of the next token."""
