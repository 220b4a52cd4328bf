"""`python -m omnimuse` is the `omnimuse` command; `torchrun ... -m omnimuse` starts it on several ranks."""

from __future__ import annotations

import sys

from omnimuse.cli import main

sys.exit(main())
