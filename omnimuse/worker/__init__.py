"""What holds the networks: build passes, and the runner that executes one tick. Driven by the engine."""
