"""Run ranks on this machine for a server on another one, which was started with --launcher agent.

The server tells what to run; the model must be found here as it is there, by the same path or hub id. Give the machine
that the ranks talk over to both: GLOO_SOCKET_IFNAME, or NCCL_SOCKET_IFNAME.

examples:
  omnimuse worker --join 10.0.0.1:7000 --agent-key-file agents.key --seats 4
"""

from __future__ import annotations

import argparse
import asyncio
from contextlib import suppress
from pathlib import Path

from omnimuse.core.config import host_and_port
from omnimuse.core.errors import ConfigError


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `omnimuse worker`."""
    parser.add_argument("--join", required=True, metavar="HOST:PORT", help="where the server lets agents join")
    parser.add_argument("--agent-key-file", type=Path, metavar="FILE", help="with the key that the server asks for")
    parser.add_argument("--seats", type=int, default=1, metavar="N", help="ranks at a time, one a GPU (default: 1)")


def run(args: argparse.Namespace) -> int:
    """Work until the server is gone."""
    try:
        from omnimuse.deploy.agents import Agent, read_key
    except ModuleNotFoundError as error:
        raise ConfigError(f'this needs {error.name}, which is not installed: pip install "omnimuse[serve]"') from None
    if args.seats < 1:
        raise ConfigError(f"--seats {args.seats} is not allowed; use at least 1")
    host, port = host_and_port(args.join, "--join")
    agent = Agent(read_key(args.agent_key_file), args.seats)
    with suppress(KeyboardInterrupt):
        asyncio.run(agent.join(host, port))
    return 0
