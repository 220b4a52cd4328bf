"""`omnimuse bench serve` against a server of a test."""

from __future__ import annotations

import argparse
import asyncio
import io
from typing import Any

from omnimuse.cli import bench
from omnimuse.cli.bench_http import Target


def measured(url: str, *words: str) -> dict[str, Any]:
    """The figures of one run of the command with these options."""
    parser = argparse.ArgumentParser()
    bench.add_options(parser)
    load = bench.read_load(parser.parse_args(["serve", *words]))
    outcomes, load = asyncio.run(bench.measure(Target.read(url, ""), load, io.StringIO()))
    figures = bench.summarize(outcomes, None)
    assert f"{figures['ok']} " in bench.text({**figures, "url": url, "model": "", "load": bench.describe(load)})
    return figures
