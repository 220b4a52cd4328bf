"""Attention as models write it: one layer, the layout of its rows, and the kernels it can be bound to."""
