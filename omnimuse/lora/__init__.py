"""Low-rank adapters: what they are as data, how linear layers wear them, and who remembers which."""
