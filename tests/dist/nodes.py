"""A cluster of Ray on loopback, whose nodes are processes of this machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest

AS_OTHERS = {"RAY_worker_niceness": "0"}
"""What Ray starts has niceness 15 else: a thirtieth of a processor on which other tests run, too."""


@contextmanager
def cluster() -> Iterator[Any]:
    """One, of a first node that has no room for ranks.

    Ray takes 127.0.0.1 for the machine's address in its network, if it has one; so nodes have others of loopback.
    """
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    before = signal.getsignal(signal.SIGTERM)  # a cluster takes it for its own
    head = {"num_cpus": 0, "node_ip_address": "127.0.0.2", "include_dashboard": False}
    with patch.dict(os.environ, AS_OTHERS):
        made = Cluster(initialize_head=True, head_node_args=head)
        yield made
        made.shutdown()
    signal.signal(signal.SIGTERM, before)
