"""Deploy files: YAML that says which stages of a model live in which pool (docs/deploy.md).

Ours has `pools`; the files of vLLM-Omni have `stage_args`, or `stages` in the newer ones, and what those say is
translated as far as it means something here. What cannot be honoured is refused by its name; what has no meaning where
our pipelines say it themselves is listed as void. No torch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from omnimuse.core.errors import ConfigError, reason
from omnimuse.core.pools import REST, DeployConfig, PoolConfig
from omnimuse.deploy.stores import STORES

log = logging.getLogger(__name__)

LARGEST = 2**20
"""Bytes of a file, at most."""
OURS = ("name", "stages", "tracks", "replicas", "device", "devices", "connector", "window", "elsewhere")
WRITER = ("writer", "python")
CARRIERS = {
    "SharedMemoryConnector": "shared_memory",
    "TcpConnector": "tcp",
    "MooncakeStoreConnector": "mooncake",
    "MooncakeConnector": "mooncake",
    "YuanrongConnector": "yuanrong",
}
STORE_OPTIONS = {"proto": "protocol"}
"""What they call otherwise than we do of what their stores are told."""
SCHEMAS = ("pools", "stage_args", "stages")

_EDGES = "edges come from what stages read and write"
_KNOWN = "the pipeline knows what its stages are, and what comes of them"
_ASKED = "a request says these, or the checkpoint"
_TAKEN = "the engine chooses it (`omnimuse explain MODEL`)"
VOID = {
    **dict.fromkeys(("stage_type", "final_output", "final_output_type", "is_comprehension"), _KNOWN),
    **dict.fromkeys(("input_sources", "engine_input_source", "custom_process_input_func", "output_connectors"), _EDGES),
    **dict.fromkeys(("default_sampling_params", "subtalker_sampling_params"), _ASKED),
}
"""Keys of a stage that say what our pipelines say themselves: why they mean nothing here."""
ENGINE_VOID = {
    **dict.fromkeys(("model_stage", "model_arch", "hf_config_name", "trust_remote_code"), "the checkpoint says so"),
    "engine_output_type": _EDGES,
    "limit_mm_per_prompt": "the door knows how much a request may show",
    **dict.fromkeys(("worker_cls", "scheduler_cls", "distributed_executor_backend"), "there is one kind of each"),
    **dict.fromkeys(("enforce_eager", "gpu_memory_utilization", "enable_prefix_caching", "async_scheduling"), _TAKEN),
    **dict.fromkeys(("max_num_batched_tokens", "max_model_len"), _TAKEN),
}
"""The same of what stands in `engine_args`, or beside the stage in newer files."""
TOP_VOID = {
    "async_chunk": "tracks always go on piece by piece",
    "pipeline": "the checkpoint says so",
    "platforms": "what it says of other machines is not read",
}


def read_deploy(path: Path) -> DeployConfig:
    """The pools of a deploy file; ConfigError says what is wrong with it, and where."""
    try:
        if path.stat().st_size > LARGEST:
            raise ConfigError(f"{path} is larger than {LARGEST} bytes, which no deploy file is")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"the deploy file {path} cannot be read: {reason(error)}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"the deploy file {path} is no YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"the deploy file {path} has no keys; write `pools:`, and a list below it (docs/deploy.md)")
    try:
        deploy = read(content)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    for void in deploy.void:
        log.warning("%s says what means nothing here: %s", path.name, void)
    return deploy


def read(content: Mapping[str, Any]) -> DeployConfig:
    """The pools that the content of a file places."""
    schema = next((name for name in SCHEMAS if name in content), None)
    if schema is None:
        raise ConfigError(f"there is none of {', '.join(SCHEMAS)} at the top; write `pools:` (docs/deploy.md)")
    entries = content[schema]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries) or not entries:
        raise ConfigError(f"{schema} is no list of mappings; write one for every pool, each with a `name`")
    if schema == "pools":
        _refuse_unknown(content, ("pools", "connectors"), "")
        return DeployConfig(tuple(_pool(entry) for entry in entries), connectors=_options(content))
    void: list[str] = []
    options: dict[str, dict[str, str]] = {}
    pools = tuple(_foreign(content, schema, entries, void, options))
    return DeployConfig(pools, void=tuple(dict.fromkeys(void)), connectors=options)


def _pool(entry: Mapping[str, Any]) -> PoolConfig:
    name = _text(entry, "name", "")
    where = f"pool {name or '?'}: "
    _refuse_unknown(entry, (*OURS, *WRITER), where)
    if "device" in entry and "devices" in entry:
        raise ConfigError(f"{where}device and devices say the same; leave one out")
    stages, tracks = _several(entry, "stages", str, where), _several(entry, "tracks", int, where)
    return PoolConfig(
        name,
        stages,
        tracks,
        replicas=_number(entry, "replicas", 1, where),
        device=device_of(entry.get("device", entry.get("devices")), where),
        connector=_text(entry, "connector", "shared_memory", where),
        window=_number(entry, "window", PoolConfig.window, where),
        elsewhere=_checked(entry, "elsewhere", False, bool, where),
        writer=_text(entry, "writer", "", where),
        python=_text(entry, "python", "", where),
    )


def _options(content: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The options of connectors, by their names; numbers are texts here."""
    given = content.get("connectors") or {}
    if not isinstance(given, dict) or not all(isinstance(options, dict) for options in given.values()):
        raise ConfigError("connectors is no mapping of names to options; write `connectors: {ray: {address: auto}}`")
    return {str(name): {str(key): str(value) for key, value in options.items()} for name, options in given.items()}


def device_of(given: Any, where: str) -> str:
    """`0`, `"0"`, `[0]`, `cpu` or `cuda:1`, as torch has it; empty for None."""
    given = given[0] if isinstance(given, list) and len(given) == 1 else given
    text = "" if given is None else str(given)
    if text.isdecimal():
        return f"cuda:{text}"
    if not all(letter.isalnum() or letter == ":" for letter in text):
        raise ConfigError(f"{where}devices {given!r} is more than one; a pool computes on one: use `replicas` for more")
    return text


# -- files of another engine -------------------------------------------------------------------------------------------


def _foreign(
    content: Mapping[str, Any],
    schema: str,
    entries: list[dict[str, Any]],
    void: list[str],
    options: dict[str, dict[str, str]],
) -> list[PoolConfig]:
    """A pool for every stage of theirs, which is a track of ours: both are what goes on beside the others. The last of
    theirs is all tracks that are left: what makes waves may take several here.
    """
    _note_void(content, TOP_VOID, (schema, "runtime", "connectors"), "", void)
    runtime = content.get("runtime") or {}
    _note_void(runtime, {"defaults": _EDGES, "edges": _EDGES}, ("connectors", "enabled"), "runtime: ", void)
    carriers = {**(runtime.get("connectors") or {}), **(content.get("connectors") or {})}
    for name, carrier in carriers.items():
        _read_extra(name, carrier, void, options)
    pools = []
    for number, entry in enumerate(entries):
        where = f"stage {entry.get('stage_id', number)}: "
        if entry.get("stage_id", number) != number:
            raise ConfigError(f"{where}stages have the numbers 0, 1, ... in their order; this is number {number}")
        placed = ("stage_id", "runtime", "engine_args", "input_connectors", "devices", "num_replicas", "max_num_seqs")
        _note_void(entry, {**VOID, **ENGINE_VOID}, placed, where, void)
        engine, place = entry.get("engine_args") or {}, entry.get("runtime") or {}
        _note_void(engine, ENGINE_VOID, ("max_num_seqs",), f"{where}engine_args: ", void)
        _note_void(place, {"max_batch_size": _TAKEN}, ("process", "devices", "num_replicas"), f"{where}runtime: ", void)
        if place.get("process", True) is not True:
            raise ConfigError(f"{where}runtime: process={place['process']} is not honoured; leave `process: true`")
        said = {**place, **engine, **entry}
        held: dict[str, Any] = {"stages": (REST,)} if number == len(entries) - 1 else {"tracks": (number,)}
        pools.append(
            PoolConfig(
                f"stage{number}",
                replicas=_number(said, "num_replicas", 1, where),
                device=device_of(said.get("devices"), where),
                connector=_carrier(entry, carriers, where),
                window=_number(said, "max_num_seqs", PoolConfig.window, where),
                **held,
            )
        )
    return pools


def _read_extra(name: str, carrier: Mapping[str, Any], void: list[str], options: dict[str, dict[str, str]]) -> None:
    """What is told of a connector beside its name: where its store is, and what means nothing here."""
    kind = CARRIERS.get(str(carrier.get("name", name)), "")
    known = STORES[kind][1] if kind in STORES else ()
    for key, value in (carrier.get("extra") or {}).items():
        if (ours := STORE_OPTIONS.get(key, key)) in known:
            options.setdefault(kind, {})[ours] = str(value)
        else:
            void.append(f"connectors: {name}: {key}: pieces are as large as they come")


def _carrier(entry: Mapping[str, Any], carriers: Mapping[str, Any], where: str) -> str:
    """The connector by which a stage of theirs is reached."""
    named = set((entry.get("input_connectors") or {}).values())
    if not named:
        return "shared_memory"
    name = sorted(named)[0]
    said = (carriers.get(name) or {}).get("name", name)
    if len(named) > 1 or said not in CARRIERS:
        raise ConfigError(f"{where}connector {said!r} is not there; use one of {', '.join(CARRIERS)}")
    return CARRIERS[said]


def _note_void(
    entry: Mapping[str, Any], void: Mapping[str, str], honoured: tuple[str, ...], where: str, noted: list[str]
) -> None:
    for key in entry:
        if key in void:
            noted.append(f"{key}: {void[key]}")
    _refuse_unknown(entry, (*honoured, *void), where)


# -- values ------------------------------------------------------------------------------------------------------------


def _refuse_unknown(entry: Mapping[str, Any], allowed: tuple[str, ...], where: str) -> None:
    for key in entry:
        if key not in allowed:
            near = get_close_matches(str(key), allowed, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"{where}{key!r} is not honoured; {hint}allowed are {', '.join(allowed)}")


def _text(entry: Mapping[str, Any], key: str, usual: str, where: str = "") -> str:
    return _checked(entry, key, usual, str, where)


def _number(entry: Mapping[str, Any], key: str, usual: int, where: str) -> int:
    return _checked(entry, key, usual, int, where)


def _checked(entry: Mapping[str, Any], key: str, usual: Any, kind: type, where: str) -> Any:
    value = entry.get(key, usual)
    if type(value) is not kind:
        what = {str: "a text", int: "a whole number", bool: "true or false"}[kind]
        raise ConfigError(f"{where}{key}={value!r} is not allowed; use {what}")
    return value


def _several(entry: Mapping[str, Any], key: str, kind: type, where: str) -> tuple[Any, ...]:
    given = entry.get(key, [])
    values = given if isinstance(given, list) else [given]
    if not all(type(value) is kind for value in values):
        example = 0 if kind is int else "decode"
        raise ConfigError(f"{where}{key}={given!r} is not allowed; use a list, such as [{example}]")
    return tuple(values)
