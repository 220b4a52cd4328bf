"""Diffusion mathematics: schedules, solvers, guidance and noise as plain functions. Knows no model."""
