"""Benchmarks: every number in the documents comes from one of these commands."""

import os

for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"):
    os.environ.setdefault(name, "1")  # no bar of a library runs through a table, in no process that is started either
