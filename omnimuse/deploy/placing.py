"""Deploy files: YAML that says which stages of a model live in which pool (docs/deploy.md).

Ours has `pools`; the files of vLLM-Omni have `stage_args`, or `stages` in the newer ones, and what those say is
translated as far as it means something here. What cannot be honoured is refused by its name; what has no meaning where
our pipelines say it themselves is listed as void. No torch.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from omnimuse.core.amounts import told_bytes
from omnimuse.core.attention import AttentionConfig, attention_of
from omnimuse.core.errors import ConfigError, reason
from omnimuse.core.foreign import SETTINGS, note_of
from omnimuse.core.pools import REST, DeployConfig, PoolConfig
from omnimuse.core.ranks import AXES, ParallelConfig
from omnimuse.deploy.based import with_base, with_platform
from omnimuse.deploy.edges import check_edges, check_ends
from omnimuse.deploy.stores import STORES
from omnimuse.deploy.strategies import STRATEGIES, with_strategy

log = logging.getLogger(__name__)

NO_ENGINE = (
    "a model in pools has no one engine to record, to put to sleep or to look into; leave the deploy file out for that"
)
LARGEST = 2**20
"""Bytes of a file, at most."""
OURS = ("name", "stages", "tracks", "replicas", "device", "devices", "dtype", "connector", "window", "elsewhere",
        "parallel", "attention")  # fmt: skip
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
ASKED = "default_sampling_params"
"""What requests are asked with."""
_ASKED = (
    "only scripts of that engine are asked with these (docs/compat.md); else a request says them, or the checkpoint"
)
VOID = {
    **dict.fromkeys(("stage_type", "final_output", "final_output_type", "is_comprehension"), _KNOWN),
    **dict.fromkeys(("engine_input_source", "input_sources", "custom_process_input_func"), _EDGES),
    **dict.fromkeys(("prompt_expand_func", "cfg_kv_collect_func"), "the pipeline makes the branches of guidance"),
    "default_pooling_params": "nothing is pooled",
    "tts_args": "instructions of up to 4000 characters are taken",
    ASKED: _ASKED,
    "subtalker_sampling_params": "a request says these, or the checkpoint",
}
"""Keys of a stage that say what our pipelines say themselves: why they mean nothing here."""
TOP_VOID = {
    "pipeline": "the checkpoint says so",
    "platforms": "what it says of machines without CUDA is not read",
    "duplex_session": "sessions are those of /v1/realtime",
    "active_stream_window": "pieces of all requests are decoded as they come",
}
DTYPE = "dtype"
OTHERWISE = {"auto": "", "half": "float16", "float": "float32"}
"""Number formats as they are called besides; `auto` is that of the engine."""
RANKS = "parallel_config"
"""A key whose mapping holds settings of `core/foreign.py`."""
DEGREES = {
    "tensor_parallel_size": "tensor",
    "pipeline_parallel_size": "pipe",
    "ulysses_degree": "ulysses",
    "ring_degree": "ring",
    "cfg_parallel_size": "cfg",
    "vae_patch_parallel_size": "vae_tiles",
}
"""What they call the axes along which ranks of a stage share work."""
FOLLOWING = ("use_hsdp", "hsdp_shard_size", "sequence_parallel_size")
"""What they say of the ranks that share tokens."""
ATTENDING = ("diffusion_attention_config", "diffusion_attention_backend")
"""How they say which backends attend in a stage."""


class _Once(yaml.SafeLoader):
    """Plain data, in whose mappings a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping; YAMLError for a key that stands twice, of which YAML itself keeps the last."""
        keys = [key.value for key, _ in node.value]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.constructor.ConstructorError(
                problem=f"{twice!r} stands there twice", problem_mark=node.start_mark
            )
        return super().construct_mapping(node, deep)


def read_deploy(path: Path, strategy: Path | None = None) -> DeployConfig:
    """The pools of a deploy file, and of a strategy that lies over it; ConfigError says what is wrong, and where."""
    content = with_platform(with_base(path, _load))
    if strategy is not None:
        content = with_strategy(strategy, content, _load)
    try:
        deploy = replace(read(content), source=str(path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    for void in deploy.void:
        log.warning("%s says what means nothing here: %s", path.name, void)
    return deploy


def _load(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST:
            raise ConfigError(f"{path} is larger than {told_bytes(LARGEST)}, which no deploy file is")
        content = yaml.load(path.read_text(encoding="utf-8"), _Once)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the deploy file {path} cannot be read: {reason(error)}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"the deploy file {path} is no YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"the deploy file {path} has no keys; write `pools:`, and a list below it (docs/deploy.md)")
    return content


def read(content: Mapping[str, Any]) -> DeployConfig:
    """The pools that the content of a file places."""
    schema = next((name for name in SCHEMAS if name in content), None)
    if schema is None:
        if STRATEGIES in content:
            raise ConfigError("it is a strategy, which lies over a deploy file: --deploy FILE --strategy THIS_FILE")
        _note({key: value for key, value in content.items() if key in SETTINGS}, {}, (), "", [])
        raise ConfigError(f"there is none of {', '.join(SCHEMAS)} at the top; write `pools:` (docs/deploy.md)")
    entries = content[schema]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries) or not entries:
        raise ConfigError(f"{schema} is no list of mappings; write one for every pool, each with a `name`")
    if schema == "pools":
        _refuse_unknown(content, ("pools", "connectors"), "")
        placed, told = tuple(_pool(entry) for entry in entries), _options(content)
        if unused := sorted(told.keys() - {pool.connector for pool in placed}):
            raise ConfigError(f"connectors: no pool says `connector: {unused[0]}`; leave it out, or name it")
        return DeployConfig(placed, connectors=told)
    void: list[str] = []
    options: dict[str, dict[str, str]] = {}
    pools = tuple(_foreign(content, schema, entries, void, options))
    sampling = tuple(_mapping(entry, ASKED, f"stage {number}: ") for number, entry in enumerate(entries))
    noted = tuple(dict.fromkeys(void))
    return DeployConfig(pools, void=noted, connectors=options, sampling=sampling if any(sampling) else ())


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
        dtype=_dtype(entry, where),
        connector=_text(entry, "connector", "shared_memory", where),
        window=_number(entry, "window", PoolConfig.window, where),
        elsewhere=_checked(entry, "elsewhere", False, bool, where),
        writer=_text(entry, "writer", "", where),
        python=_text(entry, "python", "", where),
        parallel=_parallel(_mapping(entry, "parallel", where), f"{where}parallel: "),
        attention=_attention(entry, where, "attention"),
    )


def _attention(entry: Mapping[str, Any], where: str, key: str, name: str = "") -> AttentionConfig:
    """Which backends attend there, by a mapping, or all sites by a `name`."""
    said, one = entry.get(key), entry.get(name)
    if said is not None and one is not None:
        raise ConfigError(f"{where}{key} and {name} choose the same; leave one out")
    if one is not None:
        return attention_of({"default": one}, f"{where}{name}: ")
    return attention_of({} if said is None else said, f"{where}{key}: ")


def _parallel(given: Mapping[str, Any], where: str) -> ParallelConfig:
    """The ranks of a pool, by the axes of `ParallelConfig`."""
    _refuse_unknown(given, (*AXES, "elastic", "wait"), where)
    kinds: dict[str, type] = {"elastic": bool, "wait": float if isinstance(given.get("wait"), float) else int}
    return _made({name: _checked(given, name, None, kinds.get(name, int), where) for name in given}, where)


def _made(given: Mapping[str, Any], where: str, in_parts: bool = False) -> ParallelConfig:
    try:
        made = ParallelConfig(**given)
        return made.in_parts() if in_parts else made
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from None


def _options(content: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The options of connectors, by their names; numbers are texts here."""
    given = content.get("connectors") or {}
    if not isinstance(given, dict) or not all(isinstance(options, dict) for options in given.values()):
        raise ConfigError("connectors is no mapping of names to options; write `connectors: {ray: {address: auto}}`")
    return {str(name): {str(key): str(value) for key, value in options.items()} for name, options in given.items()}


def device_of(given: Any, where: str) -> str:
    """`0`, `"0"`, `[0]`, `cpu` or `cuda:1`, as torch has it; empty for None. Of several, such as `0,1` or `[0, 1]`, all
    with commas between them.
    """
    named = given if isinstance(given, list) else "" if given is None else str(given).split(",")
    texts = [f"cuda:{text}" if text.isdecimal() else text for text in (str(each).strip() for each in named)]
    if not all(re.fullmatch(r"[a-z]+(:\d+)?", text) for text in texts):
        raise ConfigError(f"{where}device {given!r} is none; use cpu, or the number of a GPU, such as 0 or cuda:1")
    return ",".join(texts)


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
    _note(content, TOP_VOID, (schema, "runtime", "connectors", "edges", DTYPE), "", void)
    usual = _dtype(content, "")
    runtime = _mapping(content, "runtime", "")
    _note(runtime, {"defaults": _EDGES}, ("connectors", "enabled", "edges"), "runtime: ", void)
    carriers = {**_mapping(runtime, "connectors", "runtime: "), **_mapping(content, "connectors", "")}
    for name in carriers:
        _read_extra(name, _mapping(carriers, name, "connectors: "), void, options)
    for where, said in (("runtime: ", runtime), ("", content)):
        check_edges(said.get("edges"), len(entries), where)
    pools = []
    for number, entry in enumerate(entries):
        where = f"stage {entry.get('stage_id', number)}: "
        if entry.get("stage_id", number) != number:
            raise ConfigError(f"{where}stages have the numbers 0, 1, ... in their order; this is number {number}")
        engine, place = _mapping(entry, "engine_args", where), _mapping(entry, "runtime", where)
        _note(entry, VOID, (*PLACED, RANKS, *ATTENDING, *DEGREES, *FOLLOWING), where, void)
        known = ("max_num_seqs", DTYPE, RANKS, *ATTENDING, *DEGREES, *FOLLOWING)
        _note(engine, {}, known, f"{where}engine_args: ", void)
        _note(place, {}, ("process", "devices", "num_replicas"), f"{where}runtime: ", void)
        ranked = [_mapping(part, RANKS, where) for part in (engine, entry)]
        for part in ranked:
            _note(part, {}, (*DEGREES, *FOLLOWING), f"{where}{RANKS}: ", void)
        if place.get("process", True) is not True:
            raise ConfigError(f"{where}runtime: process={place['process']} is not honoured; leave `process: true`")
        check_ends(entry, number, entries, where)
        said = {**place, **engine, **ranked[0], **entry, **ranked[1]}
        held: dict[str, Any] = {"stages": (REST,)} if number == len(entries) - 1 else {"tracks": (number,)}
        pools.append(
            PoolConfig(
                f"stage{number}",
                replicas=_number(said, "num_replicas", 1, where),
                device=device_of(said.get("devices"), where),
                dtype=_dtype(said, where) or usual,
                connector=_carrier(entry, carriers, where),
                window=_number(said, "max_num_seqs", PoolConfig.window, where),
                parallel=_ranks(said, where),
                attention=_attention(said, where, *ATTENDING),
                **held,
            )
        )
    return pools


def _ranks(said: Mapping[str, Any], where: str) -> ParallelConfig:
    """How many ranks a stage of theirs has, along which axes."""
    given = {key: value for key, value in said.items() if value is not None}
    axes = {ours: _number(given, theirs, 1, where) for theirs, ours in DEGREES.items()}
    tokens = axes["ulysses"] * axes["ring"]
    in_parts = _checked(given, "use_hsdp", False, bool, where)
    allowed = {"hsdp_shard_size": {-1, tokens if in_parts else 1}, "sequence_parallel_size": {1, tokens}}
    for name, values in allowed.items():
        if _number(given, name, tokens if name != "hsdp_shard_size" else -1, where) not in values:
            raise ConfigError(
                f"{where}{name}={given[name]} is not allowed: {tokens} ranks share tokens (ulysses_degree x "
                "ring_degree), and with use_hsdp these keep parts of blocks; leave it out"
            )
    return _made(axes, where, in_parts)


PLACED = ("stage_id", "runtime", "engine_args", "input_connectors", "output_connectors", "devices", "num_replicas",
          "max_num_seqs", DTYPE)  # fmt: skip
"""Keys of a stage that are honoured, or checked."""


def _read_extra(name: str, carrier: Mapping[str, Any], void: list[str], options: dict[str, dict[str, str]]) -> None:
    """What is told of a connector beside its name: where its store is, and what means nothing here."""
    _refuse_unknown(carrier, ("name", "extra"), f"connectors: {name}: ")
    kind = CARRIERS.get(str(carrier.get("name", name)), "")
    known = STORES[kind][1] if kind in STORES else ()
    for key, value in _mapping(carrier, "extra", f"connectors: {name}: ").items():
        if kind and "${" in str(value):
            raise ConfigError(f"connectors: {name}: {key}={value!r} has a gap; write what is to stand there")
        if (ours := STORE_OPTIONS.get(key, key)) in known:
            options.setdefault(kind, {})[ours] = str(value)
        else:
            void.append(f"connectors: {name}: {key}: pieces are as large as they come")


def _carrier(entry: Mapping[str, Any], carriers: Mapping[str, Any], where: str) -> str:
    """The connector by which a stage of theirs is reached."""
    named = {str(name) for name in _mapping(entry, "input_connectors", where).values()}
    if not named:
        return "shared_memory"
    if len(named) > 1:
        raise ConfigError(
            f"{where}input_connectors are {', '.join(sorted(named))}; a stage is reached by one: name the same for all"
        )
    [name] = named
    said = (carriers.get(name) or {}).get("name", name)
    if said not in CARRIERS:
        near = get_close_matches(name, carriers, 1) if name not in carriers else []
        hint = f"did you mean {near[0]!r}, which `connectors` has? " if near else ""
        raise ConfigError(f"{where}input_connectors: {said!r} is not there; {hint}use one of {', '.join(CARRIERS)}")
    return CARRIERS[said]


def _note(
    entry: Mapping[str, Any], void: Mapping[str, str], honoured: tuple[str, ...], where: str, noted: list[str]
) -> None:
    """List what means nothing here; ConfigError for what is neither `honoured` nor void nor a setting as it is here."""
    unknown = {key: value for key, value in entry.items() if key not in void}
    _refuse_unknown(unknown, honoured, where, SETTINGS)
    for key, value in entry.items():
        if key in void:
            noted.append(f"{key}: {void[key]}")
        elif key not in honoured and (said := note_of(key, value, where)):
            noted.append(said.removeprefix(where))


# -- values ------------------------------------------------------------------------------------------------------------


def _mapping(entry: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    """What stands under `key`, which may be nothing."""
    found = entry.get(key)
    if found is not None and not isinstance(found, dict):
        raise ConfigError(
            f"{where}{key}={found!r} is not allowed; use names and values below it, such as `name: value`"
        )
    return found or {}


def _refuse_unknown(
    entry: Mapping[str, Any], allowed: tuple[str, ...], where: str, besides: Collection[str] = ()
) -> None:
    """ConfigError for a key that is neither `allowed` nor one of those `besides`, of which there are many."""
    for key in entry:
        if key not in allowed and key not in besides:
            near = get_close_matches(str(key), (*allowed, *besides), 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"{where}{key!r} is not honoured; {hint}allowed are {', '.join(allowed)}")


def _text(entry: Mapping[str, Any], key: str, usual: str, where: str = "") -> str:
    return _checked(entry, key, usual, str, where)


def _dtype(entry: Mapping[str, Any], where: str) -> str:
    """The number format that is asked for; empty: that of the engine."""
    named = "auto" if entry.get(DTYPE) is None else _text(entry, DTYPE, "", where)
    return OTHERWISE.get(named, named)


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
