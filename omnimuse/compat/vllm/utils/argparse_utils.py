"""`vllm.utils.argparse_utils`: the command line of scripts."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any

from omnimuse.compat.contract.names import no_name


class FlexibleArgumentParser(ArgumentParser):
    """Python's, for which `--some_name` is `--some-name`."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """As Python's."""
        given = sys.argv[1:] if args is None else args
        return super().parse_known_args([_dashed(word) for word in given], namespace)


def _dashed(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
