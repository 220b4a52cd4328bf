"""Sockets of a server: unix sockets that come, go and are somebody's, and addresses that make no sense."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest

from omnimuse.core.errors import ConfigError
from omnimuse.server.listening import listen
from omnimuse.server.options import Reach, is_local, read_address, told


def test_a_unix_socket_is_its_users_and_groups_and_goes_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "art.sock"
    with listen(path) as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        assert listener.getsockname() == str(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert not path.exists()


def test_what_a_dead_server_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "art.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with listen(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_socket_that_is_somebodys_and_a_file_are_left_alone(tmp_path: Path) -> None:
    path, file = tmp_path / "art.sock", tmp_path / "file"
    file.write_text("mine")
    with listen(path):
        with pytest.raises(ConfigError, match="another server listens there"), listen(path):
            pass
        with pytest.raises(ConfigError, match="no socket"), listen(file):
            pass
        assert path.exists() and file.read_text() == "mine"


def test_an_address_that_is_not_of_this_machine_is_called_that() -> None:
    for host in ("192.0.2.1", "no.such.host.invalid"):
        with pytest.raises(ConfigError, match="name an address of this machine with --host"), listen((host, 0)):
            pass


def test_an_address_is_a_host_and_a_port_or_a_path() -> None:
    for text in ("127.0.0.1:9100", "[::1]:0", "unix:/run/art.sock"):
        assert told(read_address("--metrics-address", text)) == text
    assert is_local(Path("/run/art.sock")) and is_local(("::1", 1)) and not is_local(("0.0.0.0", 1))
    for wrong in ("9100", "here:", ":1", "here:70000", "here:x", "unix:"):
        with pytest.raises(ConfigError, match="--metrics-address"):
            read_address("--metrics-address", wrong)


def test_an_admin_plane_that_others_could_reach_and_two_addresses_for_one_server_are_refused() -> None:
    with pytest.raises(ConfigError, match="asks for no key"):
        Reach(admin=("0.0.0.0", 9000))
    with pytest.raises(ConfigError, match="stands in for --host and --port"):
        Reach(uds=Path("/run/art.sock"), port=9000)
    with pytest.raises(ConfigError, match="--allowed-host"):
        Reach(allowed_hosts=("a/b",))
