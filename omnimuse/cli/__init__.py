"""The `omnimuse` command: one file per command, torch imported only by what draws.

`main` is the console script. Everything a command prints for people goes through here; programs use `omnimuse.api`.
"""

from __future__ import annotations

from omnimuse.cli.app import main

__all__ = ["main"]
