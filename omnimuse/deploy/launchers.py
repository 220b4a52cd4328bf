"""The launcher that a configuration asks for, opened. Imports what it needs of it only."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from omnimuse.core.config import Config, host_and_port
from omnimuse.deploy.launch import Launcher, Local

logger = logging.getLogger(__name__)


async def opened(config: Config, command: Sequence[str]) -> Launcher:
    """What starts the ranks of groups, which run `command`. ConfigError where it cannot."""
    parallel, launch = config.parallel, config.parallel.launch
    if launch.launcher == "agent":
        from omnimuse.deploy.agents import Agents, read_key

        host, port = host_and_port(launch.address, "--launch-address")
        agents = Agents((host, port), read_key(launch.key_file), parallel.wait)
        await agents.open()
        logger.info("agents join at %s:%d", host, agents.port)
        return agents
    if launch.launcher == "ray":
        from omnimuse.deploy.ray_actors import RayActors

        gpus = int(config.model.device != "cpu")
        actors = RayActors(launch.address, parallel.wait, gpus, tuple(command))
        await actors.open()
        return actors
    return Local(command)
