"""The last that is imported by the process from which ranks are forked: what is there then is garbage in none of them,
and stays in memory that they share.
"""

from __future__ import annotations

import gc

gc.collect()
gc.freeze()
