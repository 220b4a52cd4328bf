"""From what clients send to what the engine takes, and back."""
