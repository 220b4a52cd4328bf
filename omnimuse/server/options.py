"""What an operator chooses when the server starts. Frozen; checked when made."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from omnimuse.core.errors import ConfigError
from omnimuse.media.fetch import checked_host


@dataclass(frozen=True)
class ServeOptions:
    """Where to listen, what to keep, how much to take on; times in seconds.

    `data` is the folder of jobs and finished files, `model_name` what clients call the model. `max_queue` bounds the
    requests accepted and unfinished, `max_wait` their work ahead of a new one. `keep` is how long finished files stay.
    Pictures may be fetched from `fetch_hosts` (NAME or NAME:PORT) and from nowhere else.
    """

    data: Path
    model_name: str
    host: str = "127.0.0.1"
    port: int = 8000
    replicas: int = 1
    key_file: Path | None = None
    insecure: bool = False
    max_queue: int = 256
    max_wait: float = 600.0
    max_body: int = 64 * 2**20
    drain: float = 30.0
    hang: float = 300.0
    keep: float = 24 * 3600.0
    compat: str = ""
    fetch_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.loopback and self.key_file is None and not self.insecure:
            raise ConfigError(
                f"--host {self.host} can be reached from other machines and there is no API key; "
                "give --api-key-file, stay on 127.0.0.1, or say --insecure-no-auth"
            )
        for name in ("replicas", "max_queue", "max_body"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} is not allowed; use at least 1")
        if self.compat not in ("", "vllm-omni"):
            raise ConfigError(f"--compat {self.compat} is not known; the only one is vllm-omni")

        for host in self.fetch_hosts:
            try:
                checked_host(host)
            except ValueError as error:
                raise ConfigError(f"--fetch-host {error}") from None

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
