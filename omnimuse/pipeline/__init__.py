"""States, stages, loops and pipelines (seam A), with the stock stages every family builds on. No ranks, no clocks."""
