"""Serve a model behind an OpenAI-compatible HTTP interface, with a page to try it in the browser.

examples:
  omnimuse serve
  omnimuse serve /models/Z-Image-Turbo --dtype bfloat16 --port 9000
  omnimuse serve --host 0.0.0.0 --api-key-file keys.txt --replicas 2
  omnimuse serve --replicas 1 --max-replicas 4 --grow-after 5 --shrink-after 300
  omnimuse serve --deploy pools.yaml
  omnimuse serve --config serve.toml

Every option can also be set in a file (max-queue = 64 for --max-queue 64) and in the environment
(OMNIMUSE_MAX_QUEUE=64); several values are a list in the file and have commas between them in the environment. The
command line counts before the environment, that before the file, that before the default.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from omnimuse.cli.contract import add_contract_options, with_contract
from omnimuse.cli.engine import (
    add_engine_options,
    add_launch_options,
    add_pool_options,
    read_bytes,
    read_config,
    with_launch,
    with_pools,
)
from omnimuse.cli.job import DEFAULT_MODEL
from omnimuse.cli.scale import add_scale_options, read_scale
from omnimuse.core.config import Config
from omnimuse.core.errors import ConfigError

if TYPE_CHECKING:
    from omnimuse.server.options import Reach, ServeOptions

MOST_SECONDS = 1e9


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `omnimuse serve`."""
    _add_model_options(parser)
    where = parser.add_argument_group("where it listens, and who may ask")
    where.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine)")
    where.add_argument("--port", type=int, default=8000, help="port to listen on; 0 takes a free one (default: 8000)")
    where.add_argument("--api-key-file", type=Path, metavar="FILE", help="keys, one a line, as KEY or NAME:KEY")
    where.add_argument("--insecure-no-auth", action="store_true", help="no key although other machines can connect")
    where.add_argument(
        "--allowed-host", action="append", default=[], metavar="NAME", help="a name it answers to; may be repeated"
    )
    where.add_argument("--uds", type=Path, metavar="PATH", help="listen on a unix socket, not on --host and --port")
    where.add_argument(
        "--cors-origin", action="append", default=[], metavar="ORIGIN", help="whose pages may call it; may be repeated"
    )
    where.add_argument("--metrics-address", metavar="HOST:PORT", help="/metrics there, without a key, and not here")
    where.add_argument(
        "--admin-address", metavar="HOST:PORT", help="drain, log level, profile: of this machine only, or unix:PATH"
    )
    log = parser.add_argument_group("what it tells of itself")
    log.add_argument("--log-level", default="info", metavar="LEVEL", help="debug, info (default), warning or error")
    log.add_argument("--log-format", default="text", metavar="{text,json}", help="json: one object a line")
    log.add_argument("--otel-endpoint", metavar="URL", help="send spans there (OTLP over HTTP); needs omnimuse[otel]")
    reach = parser.add_argument_group("pictures by address (uploads and data: URLs always work)")
    reach.add_argument("--allow-url-fetch", action="store_true", help="fetch pictures from the hosts named")
    reach.add_argument("--fetch-host", action="append", default=[], metavar="NAME", help="a host; may be repeated")
    much = parser.add_argument_group("how much it takes on (times in seconds)")
    much.add_argument("--replicas", type=int, default=1, metavar="N", help="worker processes, each with the model")
    add_scale_options(much)
    much.add_argument(
        "--warm-up",
        default="small",
        metavar="{none,small,default,WxH[xF]}",
        help="what a worker draws before it is ready (default: small, the smallest that the model can)",
    )
    much.add_argument("--max-queue", type=int, default=256, metavar="N", help="unfinished requests (default: 256)")
    much.add_argument("--max-wait", type=float, default=600, metavar="S", help="work ahead of a request (default: 600)")
    much.add_argument("--drain-timeout", type=float, default=30, metavar="S", help="to finish after SIGTERM")
    much.add_argument("--hang-timeout", type=float, default=300, metavar="S", help="a step this long is a hang")
    strangers = parser.add_argument_group("how much strangers, and one key, may take")
    strangers.add_argument("--max-connections", type=int, default=1024, metavar="N", help="open at once (1024)")
    strangers.add_argument("--max-per-address", type=int, default=256, metavar="N", help="of one address (256)")
    strangers.add_argument("--max-rate", type=int, default=0, metavar="N", help="requests a minute of one key (any)")
    strangers.add_argument(
        "--tenant-share", type=float, default=1.0, metavar="PART", help="of all places for one key, such as 0.5 (1)"
    )
    strangers.add_argument("--max-jobs", type=int, default=1000, metavar="N", help="jobs kept for one key (1000)")
    strangers.add_argument("--max-kept", type=float, default=8, metavar="GIB", help="GiB kept for one key (8)")
    strangers.add_argument("--lora-dir", type=Path, metavar="FOLDER", help="whose adapters requests may name (none)")
    keep = parser.add_argument_group("what it keeps")
    keep.add_argument("--no-metadata", action="store_true", help="files do not say how they were made")
    keep.add_argument("--data", type=Path, metavar="FOLDER", help="jobs and files (default: below ~/.local/share)")
    keep.add_argument("--keep", type=float, default=86400, metavar="S", help="how long finished files stay (1 day)")
    keep.add_argument("--compat", default="", metavar="NAME", help="vllm-omni: chat answers as vLLM-Omni gives them")
    add_engine_options(parser)
    add_pool_options(parser)
    add_launch_options(parser)
    add_contract_options(parser)


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        default=DEFAULT_MODEL,
        metavar="MODEL",
        help=f"a bundled model, a folder or a hub id (default: {DEFAULT_MODEL})",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML with any of these options")
    parser.add_argument(
        "--model-name",
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME",
        help="what clients call it, one name or several (default: its id or folder)",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    try:
        from omnimuse.server.log import start_logging
        from omnimuse.server.serve import serve
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'serving needs {error.name}, which is not installed: pip install "omnimuse[serve]"'
        ) from None
    start_logging(args.log_level, args.log_format)
    return serve(*chosen(args), args.warm_up)


def chosen(args: argparse.Namespace) -> tuple[Config, ServeOptions]:
    """What the options choose, of the engine and of the server; ConfigError where they make no sense."""
    from omnimuse.deploy.process import model_name
    from omnimuse.server.options import Clients, Guard, ServeOptions

    if args.allow_url_fetch != bool(args.fetch_host):
        raise ConfigError("--allow-url-fetch and --fetch-host NAME go together: nothing is fetched from other hosts")
    place = args.port if args.uds is None else args.uds.stem
    folder = args.data or Path.home() / ".local" / "share" / "omnimuse" / f"serve-{place}"
    config = with_contract(args, read_config(args))
    config = replace(config, parallel=with_launch(args, config.parallel))
    config = replace(config, schedule=replace(config.schedule, tenant_share=args.tenant_share))
    config = with_pools(args, config)
    config = replace(config, lora=replace(config.lora, folder=args.lora_dir))
    guard = Guard(
        max_connections=args.max_connections,
        max_per_address=args.max_per_address,
        per_minute=args.max_rate,
        tenant_share=args.tenant_share,
        max_jobs=args.max_jobs,
        max_kept=read_bytes("--max-kept", args.max_kept),
        tell=not args.no_metadata,
    )
    name, *others = args.model_name or [model_name(config)]
    options = ServeOptions(
        data=folder,
        model_name=name,
        reach=_read_reach(args),
        scale=read_scale(args),
        key_file=args.api_key_file,
        insecure=args.insecure_no_auth,
        max_queue=args.max_queue,
        max_wait=_seconds("--max-wait", args.max_wait),
        guard=guard,
        drain=_seconds("--drain-timeout", args.drain_timeout),
        hang=_seconds("--hang-timeout", args.hang_timeout),
        keep=_seconds("--keep", args.keep),
        clients=Clients(tuple(others), args.compat),
        fetch_hosts=tuple(args.fetch_host),
        collector=args.otel_endpoint,
    )
    return config, options


def _seconds(option: str, seconds: float) -> float:
    if not 0 <= seconds < MOST_SECONDS:
        raise ConfigError(f"{option} {seconds:g} is not allowed; use a number of seconds, at least 0")
    return seconds


def _read_reach(args: argparse.Namespace) -> Reach:
    from omnimuse.server.options import Reach, read_address

    metrics, admin = args.metrics_address, args.admin_address
    return Reach(
        host=args.host,
        port=args.port,
        uds=args.uds,
        metrics=None if metrics is None else read_address("--metrics-address", metrics),
        admin=None if admin is None else read_address("--admin-address", admin),
        allowed_hosts=tuple(host.lower() for host in args.allowed_host),
        origins=tuple(origin.lower().rstrip("/") for origin in args.cors_origin),
    )
