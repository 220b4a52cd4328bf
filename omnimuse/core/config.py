"""Choices made when an engine starts, grouped by topic. Frozen; checked when made; no torch.

Written by people through `Omni(...)` and the command line, read by build passes, the runner and the scheduler. Every
field is honoured or refused; nothing is accepted and ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path, PurePath
from typing import Any, Literal

from omnimuse.core.attention import AttentionConfig as AttentionConfig
from omnimuse.core.caches import CacheConfig as CacheConfig
from omnimuse.core.deadlines import classes
from omnimuse.core.errors import ConfigError
from omnimuse.core.kinds import check_kinds
from omnimuse.core.pools import DTYPES, DeployConfig, PoolConfig
from omnimuse.core.ranks import AXES as AXES
from omnimuse.core.ranks import LAUNCHERS as LAUNCHERS
from omnimuse.core.ranks import RANK_WAIT as RANK_WAIT
from omnimuse.core.ranks import LaunchConfig as LaunchConfig
from omnimuse.core.ranks import ParallelConfig as ParallelConfig
from omnimuse.core.ranks import host_and_port as host_and_port

MOST_THREADS = 1024
"""More than any machine is better for; the OpenMP library ends a process that it can give no more threads."""


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name}={value!r} is not allowed; use one of {', '.join(allowed)}")


@dataclass(frozen=True)
class ModelConfig:
    """Which model, where and how. `dtype` and `device` are torch names; `"auto"` lets the build decide and say why.

    `defaults_of` names the published checkpoint whose defaults are taken; empty: the one that this is recognised as.
    `plugins` are packages that bring pipelines of their own (docs/compat.md). `files` have the weights of components,
    by their names, in the place of those in the model's folder (docs/quantization.md).
    """

    model: str
    dtype: str = "auto"
    device: str = "auto"
    load: Literal["weights", "dummy"] = "weights"
    defaults_of: str = ""
    plugins: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_kinds(self, "model")
        _one_of("dtype", self.dtype, ("auto", *DTYPES))
        _one_of("load", self.load, ("weights", "dummy"))

    @property
    def told(self) -> dict[str, Any]:
        """What files say of whatever else made them: those of components, by the last part of their names, and
        packages.
        """
        named = {name: PurePath(file).name for name, file in self.files.items()}
        said: dict[str, Any] = {"files": named, "plugins": [PurePath(plugin).name for plugin in self.plugins]}
        return {name: value for name, value in said.items() if value}


@dataclass(frozen=True)
class OffloadConfig:
    """Where weights wait: `"none"` keeps them on the device, with `"components"` networks take turns there, and
    `"layers"` brings in one block at a time of those that run at every step.

    Computing on a CPU they wait in a file without a name in `folder` (None: the system's temporary one).
    """

    mode: Literal["none", "components", "layers"] = "none"
    folder: Path | None = None

    def __post_init__(self) -> None:
        check_kinds(self, "offload")
        _one_of("offload", self.mode, ("none", "components", "layers"))
        if self.folder is not None and self.mode == "none":
            raise ConfigError(
                f"offload folder={self.folder} does nothing while offload='none'; use offload='components' or 'layers'"
            )


@dataclass(frozen=True)
class CompileConfig:
    """What is compiled before it first runs: `"blocks"` compiles each kind of block once, for all sizes."""

    mode: Literal["none", "blocks"] = "none"

    def __post_init__(self) -> None:
        check_kinds(self, "compile")
        _one_of("compile", self.mode, ("none", "blocks"))


QUANT = ("int8", "int8-dynamic", "int4", "fp8", "fp8-dynamic")
"""How weights can be packed (`quant/schemes.py`)."""


@dataclass(frozen=True)
class QuantConfig:
    """Which components' weights are packed into fewer bits while they are read, and how; `""` stands for every network
    that runs at every step. `skip` are patterns of layers that stay as they are.
    """

    schemes: Mapping[str, str] = field(default_factory=dict)
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_kinds(self, "quantize")
        for component, scheme in self.schemes.items():
            _one_of(f"quantize {component}" if component else "quantize", scheme, QUANT)
        if self.skip and not self.schemes:
            raise ConfigError(f"quantize skip={', '.join(self.skip)} does nothing: nothing is quantized; say quantize")

    @staticmethod
    def of(text: str, skip: str = "") -> QuantConfig:
        """`int8`, or `transformer=int8,text_encoder=int8`; `skip` is a list with commas, too."""
        schemes: dict[str, str] = {}
        for part in text.split(",") if text else ():
            component, named, scheme = (piece.strip() for piece in part.rpartition("="))
            if not scheme or (named and not component):
                raise ConfigError(f"quantize={text!r} is not understood; write SCHEME or COMPONENT=SCHEME,...")
            if component in schemes:
                raise ConfigError(f"quantize {component or 'of all networks'} is there twice; leave one out")
            schemes[component] = scheme
        return QuantConfig(schemes, tuple(part.strip() for part in skip.split(",") if part.strip()))


@dataclass(frozen=True)
class KernelConfig:
    """How the small steps between products and attention are computed: `"plain"`, as torch's operations, or by
    `"triton"`, fused; `"auto"` lets the build decide and say why.
    """

    mode: Literal["auto", "plain", "triton"] = "auto"

    def __post_init__(self) -> None:
        check_kinds(self, "kernels")
        _one_of("kernels", self.mode, ("auto", "plain", "triton"))


@dataclass(frozen=True)
class LoraConfig:
    """How many bytes of adapters an engine keeps, those that requests wear included.

    With a `folder` only files in it are read, and requests name them as they are called there.
    """

    memory: int = 2 * 2**30
    folder: Path | None = None

    def __post_init__(self) -> None:
        check_kinds(self, "lora")
        if self.memory < 0:
            raise ConfigError(f"lora memory={self.memory} is not allowed; use a number of bytes, at least 0")
        if self.folder is not None and not self.folder.is_dir():
            raise ConfigError(f"--lora-dir {self.folder} is no folder; name the one that adapters are in")


@dataclass(frozen=True)
class WriterConfig:
    """Who writes what is text from the first token to the last: this engine, or vLLM in a process of its own, which the
    Python of its environment runs (empty: the one that runs this).
    """

    engine: Literal["own", "vllm"] = "own"
    python: str = ""

    def __post_init__(self) -> None:
        check_kinds(self, "writer")
        _one_of("writer", self.engine, ("own", "vllm"))
        if self.python and self.engine == "own":
            raise ConfigError(f"writer python={self.python} runs nothing while this engine writes; use writer='vllm'")


LEAST_TILE = 64
"""Pixels of a side: less is nearly all seam."""


@dataclass(frozen=True)
class DecodeConfig:
    """How finished latents become pictures: with `tiling` in squares that overlap, which takes the memory of one. They
    have `tile` pixels a side, of which `overlap` is the part that the next one has, too; None: as the reference has it.
    """

    tiling: bool = False
    tile: int | None = None
    overlap: float | None = None

    def __post_init__(self) -> None:
        check_kinds(self, "decode")
        if self.tile is not None and self.tile < LEAST_TILE:
            raise ConfigError(f"vae_tile={self.tile} has to be at least {LEAST_TILE} pixels a side")
        if self.overlap is not None and not 0 <= self.overlap <= 0.5:
            raise ConfigError(f"vae_tile_overlap={self.overlap:g} has to be a part of a tile, 0 to 0.5; 0.25 is usual")

    @property
    def own(self) -> bool:
        """Whether tiles are not those of the reference."""
        return self.tile is not None or self.overlap is not None

    @property
    def in_tiles(self) -> bool:
        """Whether tiles are asked for, of whichever size."""
        return self.tiling or self.own


@dataclass(frozen=True)
class ContractConfig:
    """What a pipeline written to another engine's contract is told (docs/compat.md).

    `steps`: whether the engine owns its loop (None: where it has the four methods for that). `remote_code` lets parts
    of it run code that came with a checkpoint, and with `slicing` its autoencoder decodes pictures one at a time.
    `encoder` is the folder of an encoder that its checkpoint lacks, `coefficients` the polynomial by which TeaCache
    rescales the change that it sees, its highest power first. A family of ours has or needs none of these: `steps`
    false, an `encoder` and `coefficients` are refused there. `profile` is for every model: the log has what the parts
    of each request took, as a pipeline of the contract times them itself, or by the labels of stages.
    """

    steps: bool | None = None
    remote_code: bool = False
    profile: bool = False
    slicing: bool = False
    encoder: str | None = None
    coefficients: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_kinds(self, "contract")


@dataclass(frozen=True)
class HostConfig:
    """What an engine takes of the machine it runs on.

    `threads` to compute with on the CPU, of all `processes` together that share the machine; None lets
    `worker/threads.py` decide. They share its memory, too, or those of `replicas` do, as others come and go (None:
    all). `room` is the bytes that requests may take beside the weights (None: what there is).
    """

    threads: int | None = None
    processes: int = 1
    replicas: int | None = None
    room: int | None = None

    def __post_init__(self) -> None:
        check_kinds(self, "host")
        check_threads("threads", self.threads)
        if self.room is not None and self.room < 0:
            raise ConfigError(f"room={self.room} is not allowed; use a number of bytes, at least 0")
        for name, count in (("processes", self.processes), ("replicas", self.replicas)):
            if count is not None and count < 1:
                raise ConfigError(f"{name}={count} is not allowed; use at least 1")


def check_threads(name: str, value: int | None) -> None:
    if value is not None and not 1 <= value <= MOST_THREADS:
        raise ConfigError(f"{name}={value} is not allowed; use a whole number from 1 to {MOST_THREADS}")


@dataclass(frozen=True)
class ScheduleConfig:
    """Who runs next, and how much at once.

    `tick_tokens` bounds the row tokens of one tick, as memory does, `running_tokens` those of all outputs in progress
    (None: no bound), `running_bytes` what they may come to remember while they are written (None: half of the memory
    that is free when the engine starts), `max_running` the outputs in progress and `max_queue` the requests waiting. A
    request that came `patience` seconds ago is late, and half of its tenant's work goes to late ones. A request
    keeps its place for `slice` seconds at least while others wait for one, and ends after `max_run` seconds in
    progress (None: no bound). One tenant has at most `tenant_share` (0 to 1) of the places and tokens, also while
    nobody else wants them, or one request. Requests share ticks as far as sharing their forwards is measured to
    save time, or `company` "always". `tier` is what company may change in a result (`docs/tiers.md`): nothing in
    "exact", which never shares a forward, and in "invariant", which does; its last bits in "fast"; "auto" lets the
    build decide and say why. `memo_bytes` bounds what is kept of one-shot stages and of beginnings of texts.
    `deadlines` are classes that a request may name as its `deadline`, and what they mean: `"3"` seconds, `"3x"` what it
    takes alone, or `"never"`; those of `core/deadlines.py` are there, too.
    """

    max_running: int = 64
    max_queue: int = 256
    tick_tokens: int = 65536
    running_tokens: int | None = None
    running_bytes: int | None = None
    patience: float = 300.0
    slice: float = 2.0
    max_run: float | None = None
    tenant_share: float = 1.0
    company: Literal["measured", "always"] = "measured"
    tier: Literal["auto", "fast", "invariant", "exact"] = "auto"
    memo_bytes: int = 256 * 2**20
    strict_slots: bool = False
    deadlines: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_kinds(self, "schedule")
        _one_of("company", self.company, ("measured", "always"))
        _one_of("tier", self.tier, ("auto", "fast", "invariant", "exact"))
        for name in ("max_running", "max_queue", "tick_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} is not allowed; use at least 1")
        if self.memo_bytes < 0:
            raise ConfigError(f"memo_bytes={self.memo_bytes} is not allowed; use at least 0, which remembers nothing")
        for name, most in (("running_tokens", self.running_tokens), ("running_bytes", self.running_bytes)):
            if most is not None and most < 1:
                raise ConfigError(f"{name}={most} is not allowed; use at least 1, or leave it out")
        for name, value in (("patience", self.patience), ("slice", self.slice), ("max_run", self.max_run)):
            if value is not None and not 0 <= value < float("inf"):
                raise ConfigError(f"{name}={value} is not allowed; use a number of seconds, at least 0")
        classes(self.deadlines)
        if not 0 < self.tenant_share <= 1:
            message = (
                f"tenant_share={self.tenant_share} is not allowed; use a part of all places, above 0 and at most 1"
            )
            raise ConfigError(message)

    @property
    def exact(self) -> bool:
        """Whether every row has its own forward."""
        return self.tier == "exact"


@dataclass(frozen=True)
class Config:
    """Everything chosen at start-up."""

    model: ModelConfig
    attention: AttentionConfig = AttentionConfig()
    cache: CacheConfig = CacheConfig()
    quantize: QuantConfig = QuantConfig()
    offload: OffloadConfig = OffloadConfig()
    compile: CompileConfig = CompileConfig()
    kernels: KernelConfig = KernelConfig()
    parallel: ParallelConfig = ParallelConfig()
    decode: DecodeConfig = DecodeConfig()
    writer: WriterConfig = WriterConfig()
    contract: ContractConfig = ContractConfig()
    lora: LoraConfig = LoraConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    host: HostConfig = HostConfig()
    deploy: DeployConfig = DeployConfig()

    def __post_init__(self) -> None:
        for topic in fields(self)[1:]:
            value, kind = getattr(self, topic.name), type(topic.default)
            if not isinstance(value, kind):
                raise ConfigError(f"{topic.name}={value!r:.80} is no {kind.__name__}; write {kind.__name__}(...)")
        if self.writer.engine != "own" and self.deploy.pools and not self.deploy.pool:
            raise ConfigError(
                f"writer={self.writer.engine} with a deploy file: which pool would write so? Say `writer: "
                f"{self.writer.engine}` in the file, in the pool that does"
            )

    @property
    def told(self) -> dict[str, Any]:
        """What files say of an engine besides its model: options of the command line that change a picture."""
        attention = [self.attention.default, *(f"{role}={name}" for role, name in self.attention.per_role.items())]
        schemes = [f"{part}={scheme}" if part else scheme for part, scheme in self.quantize.schemes.items()]
        said: dict[str, Any] = {
            "defaults-of": self.model.defaults_of,
            "load": self.model.load,
            "attention": ",".join(attention),
            "cache": str(self.cache),
            "quantize": ",".join(schemes),
            "quantize-skip": ",".join(self.quantize.skip),
            "compile": self.compile.mode == "blocks",
            "kernels": self.kernels.mode,
            "tier": self.schedule.tier,
            "vae-tiles": str(self.parallel.vae_tiles),
            "vae-tiling": self.decode.tiling,
            "vae-tile": "" if self.decode.tile is None else str(self.decode.tile),
            "vae-tile-overlap": "" if self.decode.overlap is None else f"{self.decode.overlap:g}",
            "vae-slicing": self.contract.slicing,
            "writer": self.writer.engine,
        }
        usual = {"load": "weights", "attention": "auto", "cache": "none", "kernels": "auto", "tier": "auto"}
        usual |= {"vae-tiles": "1", "writer": "own"}
        return {name: value for name, value in said.items() if value and value != usual.get(name)}

    @property
    def sharing(self) -> int:
        """How many processes share the machine's memory: of a process of a pool, all of the group that are there."""
        replicas, processes = self.host.replicas, self.host.processes
        if (pool := self.deploy.here) is None:
            return processes if replicas is None else min(processes, replicas * self.parallel.ranks)
        alike = sum(
            each.replicas * each.parallel.ranks for each in self.deploy.pools if each.elsewhere == pool.elsewhere
        )
        return min(processes, alike * (replicas or processes)) if pool.elsewhere else alike * self.groups

    @property
    def groups(self) -> int:
        """How many groups of processes share the machine's memory, each of which is one engine's."""
        groups = max(1, self.host.processes // self.parallel.ranks)
        return groups if self.host.replicas is None else min(groups, self.host.replicas)

    def of_pool(self, pool: PoolConfig, replica: int) -> Config:
        """What is chosen in a process of that replica of `pool`; ConfigError for a writer that is none."""
        deploy, whole = replace(self.deploy, pool=pool.name), self.model
        model = replace(whole, device=pool.device_of(replica) or whole.device, dtype=pool.dtype or whole.dtype)
        try:
            writer = WriterConfig(pool.writer or "own", pool.python)  # type: ignore[arg-type]  # checked when it is made
        except ConfigError as error:
            raise self.deploy.wrong_of(pool.name, error) from None
        attention = pool.attention.over(self.attention)
        return replace(self, deploy=deploy, model=model, writer=writer, parallel=pool.parallel, attention=attention)


@dataclass(frozen=True)
class Choice:
    """One resolved choice and why it was made; `omnimuse explain` prints these."""

    topic: str
    name: str
    value: str
    reason: str
