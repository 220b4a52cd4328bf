"""What is going on, made visible: progress, recordings and what their labels say, what a notebook shows."""
