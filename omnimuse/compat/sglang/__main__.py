"""`python -m omnimuse.compat.sglang`: SGLang Diffusion's command line, by our import root."""

from __future__ import annotations

import sys

from omnimuse.compat.sglang.runtime.entrypoints.command import main

if __name__ == "__main__":
    sys.exit(main())
