"""BAGEL: one model that reads, sees, writes and draws (ByteDance-Seed/BAGEL-7B-MoT)."""
