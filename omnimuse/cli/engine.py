"""The options that choose how an engine is built, shared by every command that starts or explains one."""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from omnimuse.core.caches import BY_NAME, OFF, cache_named
from omnimuse.core.config import (
    LAUNCHERS,
    QUANT,
    RANK_WAIT,
    AttentionConfig,
    CacheConfig,
    CompileConfig,
    Config,
    ContractConfig,
    DecodeConfig,
    HostConfig,
    KernelConfig,
    LaunchConfig,
    LoraConfig,
    ModelConfig,
    OffloadConfig,
    ParallelConfig,
    QuantConfig,
    ScheduleConfig,
    WriterConfig,
)
from omnimuse.core.deadlines import CLASSES
from omnimuse.core.environment import Environment
from omnimuse.core.errors import ConfigError
from omnimuse.core.names import backend_of

MOST_GIB = 2**20
AUTO = "auto"
"""What `--attention` says where nobody says anything."""


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Where and in which format to compute, and every feature that a build pass adds."""
    engine = parser.add_argument_group(
        "the engine (`omnimuse explain MODEL` tells what is chosen, and why)",
        "What chooses an engine can be set in the environment, too: OMNIMUSE_OFFLOAD=layers is --offload layers."
        " The command line counts before it.",
    )
    _add_model_options(engine)
    engine.add_argument("--dtype", default="auto", help="float32, bfloat16 or float16 (default: auto)")
    engine.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: auto)")
    engine.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="to compute with, of all workers together (default: OMP_NUM_THREADS,"
        " or as many as the machine or container has cores for us)",
    )
    engine.add_argument(
        "--load", default="weights", metavar="{weights,dummy}", help="dummy builds the network with random weights"
    )
    _add_attention_options(engine)
    engine.add_argument("--compile", action="store_true", help="compile blocks: the first run takes long, steps less")
    engine.add_argument(
        "--kernels",
        default="auto",
        metavar="{auto,plain,triton}",
        help="of norms, rotations and gated sums: torch's, or fused ones on a GPU (default: auto)",
    )
    _add_cache_options(engine)
    engine.add_argument(
        "--writer", default="own", metavar="{own,vllm}", help="who writes text: this engine, or vLLM (docs/deploy.md)"
    )
    engine.add_argument(
        "--writer-python", default="", metavar="FILE", help="the Python of the environment that vLLM is installed in"
    )
    engine.add_argument(
        "--room", type=float, metavar="GIB", help="that requests may take beside the weights (default: what there is)"
    )
    engine.add_argument(
        "--lora-memory", type=float, default=2, metavar="GIB", help="that adapters may take (default: 2)"
    )
    engine.add_argument("--vae-tiling", action="store_true", help="decode in tiles: less memory, faint seams")
    engine.add_argument(
        "--vae-tile", type=int, metavar="PIXELS", help="a side of these tiles (default: the model's own)"
    )
    engine.add_argument(
        "--vae-tile-overlap", type=float, metavar="PART", help="of a tile that the next one has, too (default: 0.25)"
    )
    engine.add_argument("--vae-slicing", action="store_true", help="decode pictures one at a time, as always")
    _add_weight_options(parser)
    _add_rank_options(parser)
    _add_schedule_options(parser)


def _add_model_options(engine: argparse._ArgumentGroup) -> None:
    engine.add_argument(
        "--defaults-of",
        default="",
        metavar="NAME",
        help="take the defaults of this published checkpoint, where the model is not recognised as what it is",
    )
    engine.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="a package that brings pipelines of its own (docs/compat.md); may be given several times",
    )

    engine.add_argument(
        "--component",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="the weights of this component are in that *.gguf or *.safetensors file, such as text_encoder=Qwen3.gguf"
        f" (docs/quantization.md); may be given several times; {NOTHING}: all are the model's own",
    )


def _add_cache_options(engine: argparse._ArgumentGroup) -> None:
    engine.add_argument(
        "--cache",
        metavar="NAME",
        help=f"skip work while little changes: {', '.join(BY_NAME)}, with settings such as dbcache,threshold=0.1"
        " (default: none; docs/caches.md)",
    )
    engine.add_argument("--teacache", type=float, metavar="X", help="short for --cache teacache,threshold=X; 0 is off")


def _add_weight_options(parser: argparse.ArgumentParser) -> None:
    weights = parser.add_argument_group("less memory for weights")
    weights.add_argument(
        "--quantize",
        default="",
        metavar="SCHEME",
        help=f"pack weights while they are read: {', '.join(QUANT)}; or by component, such as"
        " transformer=int8,text_encoder=int8 (docs/quantization.md)",
    )
    weights.add_argument(
        "--quantize-skip",
        default="",
        metavar="PATTERNS",
        help="layers that are not quantized, such as blocks.0,*.modulation",
    )
    weights.add_argument(
        "--offload",
        default="none",
        metavar="{none,components,layers}",
        help="components: networks take turns on the device; layers: blocks, too, come in while they run; less memory",
    )
    weights.add_argument(
        "--offload-folder",
        type=Path,
        metavar="FOLDER",
        help="where weights wait beside a CPU (default: the system's folder for temporary files)",
    )


NOTHING = "none"
"""In the place of what an option names: nothing of that, whatever a file of settings or the environment has."""
RANKS = (
    ("tensor", "--tensor-parallel-size", "each hold a part of every block's weights"),
    ("ulysses", "--ulysses-degree", "each compute a part of the tokens, and attend with some heads"),
    ("ring", "--ring-degree", "each compute a part of the tokens, and pass their keys on"),
    ("cfg", "--cfg-parallel-size", "each compute some of the guidance branches"),
    ("pipe", "--pipeline-parallel-size", "each hold some of the blocks, and take turns"),
    ("shard", "--hsdp-shard-size", "keep the blocks' weights in parts: as many as share tokens"),
    ("vae_tiles", "--vae-patch-parallel-size", "each decode some tiles of a picture: all of them, or 1"),
)
"""The axes of `ParallelConfig`, the option of each, and what its processes do. Short names are in `core/names.py`."""


def _add_attention_options(engine: argparse._ArgumentGroup) -> None:
    engine.add_argument(
        "--attention",
        default="auto",
        metavar="NAME",
        help="the attention backend; or several by role, such as sdpa,cross=reference (default: auto)",
    )
    engine.add_argument(
        "--attention-role",
        action="append",
        default=[],
        metavar="ROLE=NAME",
        help="the backend of one role or category; also --attention.per_role.ROLE.backend NAME",
    )


def _add_rank_options(parser: argparse.ArgumentParser) -> None:
    ranks = parser.add_argument_group("several processes for one model (docs/parallel.md)")
    for axis, option, what in RANKS:
        ranks.add_argument(option, dest=axis, type=int, default=1, metavar="N", help=f"processes that {what}")
    ranks.add_argument("--use-hsdp", action="store_true", help="short for the --hsdp-shard-size that fits the others")
    ranks.add_argument(
        "--elastic", action="store_true", help="the processes of --ulysses-degree may draw several requests, in teams"
    )
    ranks.add_argument(
        "--rank-wait",
        type=float,
        default=RANK_WAIT,
        metavar="SECONDS",
        help=f"how long processes wait for one another before all of them end (default: {RANK_WAIT:.0f})",
    )


def _add_schedule_options(parser: argparse.ArgumentParser) -> None:
    company = parser.add_argument_group("several requests at once")
    company.add_argument(
        "--company",
        default="measured",
        metavar="{measured,always}",
        help="measured: requests share forwards as far as that saves time (default); always: whenever they can",
    )
    company.add_argument(
        "--max-run", type=float, metavar="SECONDS", help="end a request that was in progress for longer"
    )
    company.add_argument(
        "--deadline-class",
        action="append",
        default=[],
        metavar="NAME=WHEN",
        help="what requests may name as their deadline: seconds, times what they take alone (3x), or never"
        f" (default: {', '.join('='.join(each) for each in CLASSES.items())}); may be given several times",
    )
    company.add_argument(
        "--tier",
        default="auto",
        metavar="NAME",
        help="what results owe to their company: exact, invariant (nothing) or fast (rounding); see docs/tiers.md",
    )
    company.add_argument(
        "--exact",
        dest="tier",
        action="store_const",
        const="exact",
        help="short for --tier exact: never share a forward",
    )


def read_config(args: argparse.Namespace) -> Config:
    """The configuration that the options ask for; ConfigError where they make no sense."""
    files = read_files(args.component)
    return Config(
        ModelConfig(args.model, args.dtype, args.device, args.load, args.defaults_of, tuple(args.plugin), files),
        attention=_attention(args),
        cache=read_cache(args.cache, args.teacache),
        quantize=QuantConfig.of(args.quantize, args.quantize_skip),
        offload=OffloadConfig(args.offload, args.offload_folder),
        compile=CompileConfig("blocks" if args.compile else "none"),
        kernels=KernelConfig(args.kernels),
        parallel=read_parallel(args),
        decode=DecodeConfig(args.vae_tiling, args.vae_tile, args.vae_tile_overlap),
        writer=WriterConfig(args.writer, args.writer_python),
        contract=ContractConfig(slicing=args.vae_slicing),
        schedule=read_schedule(args),
        lora=LoraConfig(read_bytes("--lora-memory", args.lora_memory)),
        host=HostConfig(threads=args.threads, room=None if args.room is None else read_bytes("--room", args.room)),
    )


def read_files(texts: Sequence[str]) -> dict[str, str]:
    """The files of components, by their names; ConfigError for a text that names no file, or one component twice."""
    found = dict[str, str]()
    if list(texts) == [NOTHING]:
        return found
    for text in texts:
        name, _, file = text.partition("=")
        if not name or not file:
            raise ConfigError(f"--component {text} is not understood; write NAME=FILE, such as text_encoder=Qwen3.gguf")
        if name in found:
            raise ConfigError(f"--component says twice where {name} is; leave one out")
        found[name] = file
    return found


def read_bytes(option: str, gib: float) -> int:
    """What so many GiB are in bytes; ConfigError for what is no size."""
    if not 0 <= gib < MOST_GIB:
        raise ConfigError(f"{option} {gib:g} is not allowed; use a number of GiB, at least 0")
    return int(gib * 2**30)


def read_schedule(args: argparse.Namespace) -> ScheduleConfig:
    """Who runs next, and in what company."""
    deadlines = read_deadlines(args.deadline_class)
    return ScheduleConfig(tier=args.tier, company=args.company, max_run=args.max_run, deadlines=deadlines)


def read_deadlines(words: list[str]) -> dict[str, str]:
    """`NAME=WHEN` several times: the classes that a deadline may name."""
    found = {}
    for word in words:
        name, _, when = word.partition("=")
        if not name or not when or name in found:
            raise ConfigError(f"--deadline-class {word} is not understood; write NAME=WHEN once for a name")
        found[name] = when
    return found


def add_launch_options(parser: argparse.ArgumentParser) -> None:
    """Where a server starts the ranks of its groups; scripts start theirs beside them."""
    launch = parser.add_argument_group("processes on other machines (docs/parallel.md)")
    launch.add_argument(
        "--launcher", default="local", metavar=f"{{{','.join(LAUNCHERS)}}}", help="who starts them (default: local)"
    )
    launch.add_argument(
        "--launch-address", default="", metavar="HOST:PORT", help="where agents join, or the cluster of Ray"
    )
    launch.add_argument("--agent-key-file", type=Path, metavar="FILE", help="with the key that agents must know")


def add_pool_options(parser: argparse.ArgumentParser) -> None:
    """Where the stages of a model live."""
    pools = parser.add_argument_group("the stages of a model in several processes (docs/deploy.md)")
    pools.add_argument("--deploy", type=Path, metavar="FILE", help="YAML that spreads them")
    pools.add_argument(
        "--strategy", type=Path, metavar="FILE", help="with --deploy: ranks and replicas of its stages, as YAML"
    )


def engine_names() -> list[str]:
    """What the options that choose an engine are called in what a parser has read."""
    parser = argparse.ArgumentParser()
    add_engine_options(parser)
    add_pool_options(parser)
    return list(vars(parser.parse_args([])))


def with_pools(args: argparse.Namespace, config: Config) -> Config:
    """`config`, with the stages where the deploy file says, if one was given; ConfigError for a recording of such."""
    if args.deploy is None:
        if args.strategy is not None:
            raise ConfigError(f"--strategy {args.strategy} lies over a deploy file; name that with --deploy")
        return config
    from omnimuse.deploy.placing import NO_ENGINE, read_deploy

    if vars(args).get("profile") is not None:  # of whichever command records, before anything is loaded
        raise ConfigError(f"--profile cannot be: {NO_ENGINE}")
    return replace(config, deploy=read_deploy(args.deploy, args.strategy))


def read_cache(text: str | None, teacache: float | None) -> CacheConfig:
    """The step cache of requests that choose none of their own."""
    if text is not None and teacache is not None:
        raise ConfigError(f"--cache {text} and --teacache {teacache} both choose the step cache; leave one out")
    if teacache is not None:
        if not 0 <= teacache < math.inf:
            raise ConfigError(f"--teacache {teacache:g} is not allowed; use a number of at least 0, which never skips")
        return CacheConfig("teacache", teacache)
    return OFF if text is None else cache_named(text)


def read_parallel(args: argparse.Namespace) -> ParallelConfig:
    """How many ranks share the work along each axis."""
    asked = ParallelConfig(
        **{axis: getattr(args, axis) for axis, *_ in RANKS}, elastic=args.elastic, wait=args.rank_wait
    )
    return asked.in_parts() if args.use_hsdp else asked


def with_launch(args: argparse.Namespace, parallel: ParallelConfig) -> ParallelConfig:
    """`parallel`, with ranks started as the launch options say."""
    return replace(parallel, launch=LaunchConfig(args.launcher, args.launch_address, args.agent_key_file))


SAID_IN = "said_in"
"""Where options have, by destination, how much the place counts in which they were said: the command line most."""


def _attention(args: argparse.Namespace) -> AttentionConfig:
    """The backends that were said; where none was for all roles, that of another engine's variable.

    The option of roles counts more than that of all, or less, by the places in which they were said.
    """
    ranks: Mapping[str, int] = vars(args).get(SAID_IN, {})
    over = ranks.get("attention_role", 0) - ranks.get("attention", 0)
    text = args.attention if "attention" in ranks or args.attention != AUTO else None
    otherwise = backend_of(Environment.read().attention or AUTO)
    return read_attention(text, *args.attention_role, over=over, otherwise=otherwise)


def read_attention(text: str | None, *roles: str, over: int = 0, otherwise: str = AUTO) -> AttentionConfig:
    """`sdpa` or `sdpa,cross=reference`: one default (or `otherwise`), then exceptions by role or category; `roles` are
    exceptions, too, which count so much more (`over`) than those, or less. `TORCH_SDPA` is `sdpa`, and `fa` is
    `flash_attn_2`.
    """
    chosen, by = dict[str, str](), dict[str, str]()
    forms = {"--attention": "NAME or NAME,role=NAME", "--attention-role": "ROLE=NAME, or --attention for all roles"}
    said = [("--attention", text)] if text is not None else []
    said += [("--attention-role", each) for each in roles]
    for option, words in said:
        shown = f"{option} {shlex.quote(words)}"
        for part in words.split(","):
            role, is_role, backend = (piece.strip() for piece in part.rpartition("="))
            if not backend or bool(role) != bool(is_role) or (option == "--attention-role" and not role):
                raise ConfigError(f"{shown} is not understood; write {forms[option]}")
            if role in chosen and (over == 0 or by[role] == option):
                raise ConfigError(f"{shown} says twice what {role or 'all roles'} take; leave one out")
            if role not in chosen or over > 0:
                chosen[role], by[role] = backend_of(backend), option
    return AttentionConfig(chosen.pop("", otherwise), chosen)
