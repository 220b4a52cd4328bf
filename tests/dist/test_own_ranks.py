"""A plain script that asks for several ranks starts them, draws what one rank draws, and leaves nothing behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from omnimuse.core.environment import Environment

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.timeout(300)]

BEGUN = """
import signal
import psutil
from omnimuse import Omni, ParallelConfig
from omnimuse.core.errors import ConfigError, EngineDeadError

ask = dict(seed=7, num_inference_steps=3, output_type="pt", progress=False)

def others():
    return [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]

"""
SCRIPT = """
with Omni("omnimuse/shapes", dtype="float32", device="cpu") as omni:
    expected = omni.generate("a red circle", **ask)[0].output
with Omni("omnimuse/shapes", dtype="float32", device="cpu", parallel=ParallelConfig(tensor=2)) as omni:
    assert len(others()) == 1
    found = omni.generate("a red circle", **ask)[0].output
    assert (found - expected).norm() <= 1e-4 * expected.norm()
    try:
        Omni("omnimuse/shapes", parallel=ParallelConfig(ring=2))
    except ConfigError as error:
        assert "close the engine" in str(error)
    else:
        raise AssertionError("two groups in one process")
assert not others()
try:
    Omni("omnimuse/shapes", parallel=ParallelConfig(tensor=4))
except ConfigError as error:
    assert "use tensor=3 or less" in str(error), error
else:
    raise AssertionError("more ranks than heads")
assert not others()
print("whole")
"""
LOST = """
with Omni("omnimuse/shapes", dtype="float32", device="cpu", parallel=ParallelConfig(ring=2)) as omni:
    others()[0].send_signal(signal.SIGKILL)
    try:
        omni.generate("a red circle", **ask)
        raise AssertionError("a rank is gone")
    except EngineDeadError:
        pass
assert not others()
print("whole")
"""
LOST_EARLY = """
import threading
import time

def lose():
    while not (found := others()):
        time.sleep(0.01)
    found[0].send_signal(signal.SIGKILL)

threading.Thread(target=lose).start()
try:
    Omni("omnimuse/shapes", dtype="float32", device="cpu", parallel=ParallelConfig(ring=2))
except EngineDeadError as error:
    assert "rank 1 was ended by SIGKILL before all ranks had come" in str(error), error
else:
    raise AssertionError("a rank never came")
assert not others()
print("whole")
"""
LOST_MEANWHILE = """
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

def come():
    meetings = Path(tempfile.gettempdir()).glob("omnimuse-ranks-*/meeting")
    with suppress(FileNotFoundError):
        return any(b"here/1" in meeting.read_bytes() for meeting in meetings)

def lose():
    while not come():
        time.sleep(0.001)
    others()[0].send_signal(signal.SIGKILL)

threading.Thread(target=lose).start()
begun = time.monotonic()
try:
    Omni("omnimuse/shapes", dtype="float32", device="cpu", parallel=ParallelConfig(ring=2))
except EngineDeadError as error:
    assert "rank 1 was ended by SIGKILL before all ranks had" in str(error), error
else:
    raise AssertionError("a rank never connected")
assert not others()
with Omni("omnimuse/shapes", dtype="float32", device="cpu", parallel=ParallelConfig(ring=2)) as omni:
    omni.generate("a red circle", **ask)
assert time.monotonic() - begun < 240
print("whole")
"""


@pytest.mark.costly
@pytest.mark.parametrize(
    "script",
    [
        pytest.param(SCRIPT, id="ended", marks=pytest.mark.costly(turns=3)),
        pytest.param(LOST, id="lost"),
        pytest.param(LOST_EARLY, id="lost_early"),
        pytest.param(LOST_MEANWHILE, id="lost_meanwhile"),
    ],
)
def test_a_script_starts_its_ranks_and_they_end_with_the_engine(script: str, tmp_path: Path) -> None:
    own = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", BEGUN + script], capture_output=True, text=True, check=False, env=own)
    assert done.returncode == 0 and done.stdout.strip().endswith("whole"), done.stdout + done.stderr


UNDER_TORCHRUN = """
from omnimuse import Omni, ParallelConfig

with Omni("omnimuse/shapes", dtype="float32", device="cpu", parallel=ParallelConfig(tensor=2)) as omni:
    omni.generate("a red circle", seed=7, num_inference_steps=2, progress=False)
print("drawn")
"""


@pytest.mark.costly
@pytest.mark.parametrize("nodes", [1, 2])
def test_ranks_that_torchrun_started_are_taken_as_they_are_and_the_first_goes_on(tmp_path: Path, nodes: int) -> None:
    """On one machine, or on as many as take this one for theirs, each with an agent of torchrun's own."""
    script = tmp_path / "draw.py"
    script.write_text(UNDER_TORCHRUN)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = ["--master-addr", "127.0.0.1", "--master-port", str(free.getsockname()[1])]
    begin = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(nodes), *where]
    each = ["--nproc-per-node", str(2 // nodes), str(script)]
    environment = {**Environment.for_workers(), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    working = [
        subprocess.Popen(
            [*begin, "--node-rank", str(node), *each],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for node in range(nodes)
    ]
    told = [one.communicate()[0] for one in working]
    assert all(one.returncode == 0 for one in working) and "".join(told).count("drawn") == 1, told
