"""What an operator chooses when the server starts. Frozen; checked when made."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from omnimuse.core.errors import ConfigError
from omnimuse.deploy.scale import Scale
from omnimuse.media.fetch import checked_host

_HOST = re.compile(r"[a-z0-9.-]{1,253}|[0-9a-f:]{2,45}")
_ORIGIN = re.compile(r"https?://([a-z0-9.-]{1,253}|\[[0-9a-f:]{2,45}\])(:[0-9]{1,5})?")
HOST, PORT = "127.0.0.1", 8000

Address = tuple[str, int] | Path
"""A host and a port, or the path of a unix socket."""


@dataclass(frozen=True)
class Reach:
    """Where the server can be reached, and by whose pages.

    A `uds` (unix socket) stands in for `host` and `port`. `metrics` and `admin` are the addresses of the measurements,
    where they have their own, and of the operator's endpoints, where there are any. A server that others than this
    machine can reach answers to `allowed_hosts` only, if there are any. Pages of `origins` may call it from a browser.
    """

    host: str = HOST
    port: int = PORT
    uds: Path | None = None
    metrics: Address | None = None
    admin: Address | None = None
    allowed_hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.uds is not None and (self.host, self.port) != (HOST, PORT):
            raise ConfigError(f"--uds {self.uds} stands in for --host and --port; leave them out")
        if not 0 <= self.port < 65536:
            raise ConfigError(f"--port {self.port} is not allowed; use 1 to 65535, or 0, which takes a free one")
        for host in self.allowed_hosts:
            if _HOST.fullmatch(host) is None:
                raise ConfigError(f"--allowed-host {host!r} is no name of a host; use one such as art.example.com")
        for origin in self.origins:
            if origin != "*" and _ORIGIN.fullmatch(origin) is None:
                raise ConfigError(f"--cors-origin {origin!r} is no origin; use one such as https://art.example.com")
        if self.admin is not None and not is_local(self.admin):
            raise ConfigError(
                f"--admin-address {told(self.admin)} can be reached from other machines, and asks for no key; "
                "use 127.0.0.1:PORT or unix:PATH"
            )

    @property
    def address(self) -> Address:
        """Where the public interface is."""
        return self.uds or (self.host, self.port)


@dataclass(frozen=True)
class Guard:
    """What strangers, and one tenant, may take; sizes in bytes.

    A body has at most `max_body`, all in memory together `max_bodies`. `per_minute` bounds the requests of one key
    (0: not at all), `max_jobs` and `max_kept` what is kept for it, and `tenant_share` (0 to 1) its part of what a
    worker has in progress and of the jobs that run. `tell` writes into files how they were made.
    """

    max_body: int = 64 * 2**20
    max_bodies: int = 256 * 2**20
    max_connections: int = 1024
    max_per_address: int = 256
    per_minute: int = 0
    max_jobs: int = 1000
    max_kept: int = 8 * 2**30
    tenant_share: float = 1.0
    tell: bool = True

    def __post_init__(self) -> None:
        for name in ("max_body", "max_connections", "max_per_address", "max_jobs", "max_kept"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} is not allowed; use at least 1")
        if self.max_bodies < self.max_body:
            message = f"max_bodies={self.max_bodies} is less than one body may have; use at least {self.max_body}"
            raise ConfigError(message)
        if not 0 < self.tenant_share <= 1:
            message = f"--tenant-share {self.tenant_share} is not allowed; use a part above 0 and at most 1"
            raise ConfigError(message)
        if self.per_minute < 0:
            raise ConfigError(f"--max-rate {self.per_minute} is not allowed; use 0 for no bound, or more")


@dataclass(frozen=True)
class Clients:
    """What clients expect: by which names besides its own they may call the model, and how chat answers them
    (`compat`: "" or "vllm-omni") where they do not say it.
    """

    names: tuple[str, ...] = ()
    compat: str = ""

    def __post_init__(self) -> None:
        if self.compat not in ("", "vllm-omni"):
            raise ConfigError(f"--compat {self.compat} is not known; the only one is vllm-omni")


@dataclass(frozen=True)
class ServeOptions:
    """Where to listen, what to keep, how much to take on; times in seconds.

    `data` is the folder of jobs and finished files, `model_name` what clients call the model, `scale` how many workers
    draw. `max_queue` bounds the requests accepted and unfinished, `max_wait` their work ahead of a new one. `keep` is
    how long finished files stay. Pictures may be fetched from `fetch_hosts` (NAME or NAME:PORT) and from nowhere else.
    Spans go to the `collector`.
    """

    data: Path
    model_name: str
    reach: Reach = Reach()
    scale: Scale = Scale()
    key_file: Path | None = None
    insecure: bool = False
    max_queue: int = 256
    max_wait: float = 600.0
    guard: Guard = Guard()
    drain: float = 30.0
    hang: float = 300.0
    keep: float = 24 * 3600.0
    clients: Clients = Clients()
    fetch_hosts: tuple[str, ...] = ()
    collector: str | None = None

    def __post_init__(self) -> None:
        if self.collector is not None and not self.collector.startswith(("http://", "https://")):
            raise ConfigError(f"--otel-endpoint {self.collector!r} is no URL; use one such as http://127.0.0.1:4318")
        if not self.loopback and self.key_file is None and not self.insecure:
            raise ConfigError(
                f"--host {self.reach.host} can be reached from other machines and there is no API key; "
                "give --api-key-file, stay on 127.0.0.1, or say --insecure-no-auth"
            )
        if not self.loopback and self.key_file is None and not self.reach.allowed_hosts:
            raise ConfigError(
                f"--host {self.reach.host} without keys can be reached through the browser of anybody near it; "
                "say under which names it may be, with --allowed-host NAME"
            )
        if "*" in self.reach.origins and self.key_file is None:
            raise ConfigError(
                "--cors-origin * lets the pages of every site in, and there is no API key; give --api-key-file, or "
                "name the origins"
            )
        if self.guard.per_minute and self.key_file is None:
            raise ConfigError("--max-rate counts the requests of each key, and there are none; give --api-key-file")
        if self.guard.tenant_share < 1 and self.key_file is None:
            raise ConfigError("--tenant-share parts the work between keys, and there are none; give --api-key-file")
        for name in self.served:
            if not name or not name.isprintable():
                raise ConfigError(f"no client can say {name!r:.80}; give the model another name, by --model-name NAME")
        if self.max_queue < 1:
            raise ConfigError(f"max_queue={self.max_queue} is not allowed; use at least 1")
        for host in self.fetch_hosts:
            try:
                checked_host(host)
            except ValueError as error:
                raise ConfigError(f"--fetch-host {error}") from None

    @property
    def served(self) -> tuple[str, ...]:
        """Every name of the model that is served, its own first."""
        return (self.model_name, *self.clients.names)

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        return is_local(self.reach.address)


def is_local(address: Address) -> bool:
    """Whether only this machine can connect to `address`."""
    return isinstance(address, Path) or is_loopback(address[0])


def told(address: Address) -> str:
    """`address` as it was given."""
    if isinstance(address, Path):
        return f"unix:{address}"
    host, port = address
    return f"{f'[{host}]' if ':' in host else host}:{port}"


def read_address(option: str, given: str) -> Address:
    """HOST:PORT or unix:PATH taken apart; ConfigError, which names the option, for anything else."""
    if given.startswith("unix:") and given != "unix:":
        return Path(given.removeprefix("unix:"))
    host, _, port = given.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise ConfigError(f"{option} {given!r} is no HOST:PORT; use one such as 127.0.0.1:9100, or unix:PATH")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address, is this machine's own only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
