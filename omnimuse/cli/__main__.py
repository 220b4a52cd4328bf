"""`python -m omnimuse.cli` is the `omnimuse` command, for when the script is not on the path."""

from __future__ import annotations

import sys

from omnimuse.cli.app import main

sys.exit(main())
