"""Offload: stack runners that keep weights away from the compute device until their block runs."""
