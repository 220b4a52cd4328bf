"""`python -m tools.compat_check WHEEL_OR_FOLDER [ARCH ...]`: model files of a vLLM-Omni, through the door.

A check for people who work on the door, and no part of CI: it needs a wheel of vLLM-Omni, or a folder that has one
unpacked. The files are copied into a temporary folder with the roots of their imports changed, and nothing of them is
kept. Of every pipeline in their registry it says whether it imports, and of those for which the tests have a tiny
checkpoint whether it builds, draws, and agrees with diffusers; where it stops, why.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import re
import resource
import sys
import tempfile
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from signal import SIGXCPU, Signals
from typing import Any

import torch
from torch import Tensor, nn

from omnimuse.core.errors import OmnimuseError
from tools.compat_trace import parting, traced

BORROWED = "borrowed"
SIZED = f"{BORROWED}.sized"
SAID = "said.txt"
"""Where a process says what went wrong."""

WITH_SIZES = """import {module} as published
from tools.compat_check import sizes_of

def __getattr__(name):
    return getattr(published, name)

"""
"""A module with all that `module` has, but for networks that have the sizes of the checkpoint."""

SIZED_NETWORK = """class {name}(published.{name}):
    def __init__(self, *given, **told):
        super().__init__(*given, **{{**sizes_of(published.{name}), **told}})

"""

OWN = ".diffusion.models"
MODELS = "vllm_omni/diffusion/models/"
REGISTRY = "vllm_omni/diffusion/registry.py"
IMPORT = re.compile(r"^(\s*)(from|import) +(vllm_omni|vllm)\b([\w.]*)", re.MULTILINE)
TABLES = ("_DIFFUSION_MODELS", "_DIFFUSION_PRE_PROCESS_FUNCS", "_DIFFUSION_POST_PROCESS_FUNCS")
STAGES = ("imports", "builds", "draws", "agrees")
LONGEST = 240
"""Seconds of computing for one pipeline, however busy the machine is."""

MOST = 6 * 2**30
"""Bytes of one pipeline."""

SHOWN = 300
"""Characters of what went wrong."""

CLOSE = 1e-4
"""How far pictures may be apart."""


@dataclass(frozen=True)
class Known:
    """How a pipeline is to be asked for what the reference of its tiny checkpoint draws, and why (`but`): `otherwise`
    says that for people.

    `own` are choices of its own, `usual` parameters that it does not use, of which both sides are given none, and it
    takes `steps` more. One that computes in bfloat16 alone (`half`) must be no further from the reference in bfloat16
    than that is from the one in float32.
    """

    but: str = ""
    otherwise: str = ""
    own: Mapping[str, Any] = field(default_factory=dict)
    usual: tuple[str, ...] = ()
    steps: int = 0
    half: bool = False


KNOWN: Mapping[str, Known] = {
    "FluxKontextPipeline": Known(
        "512 tokens whatever is asked",
        "no `max_sequence_length`, which it does not use",
        usual=("max_sequence_length",),
    ),
    "HiDreamImagePipeline": Known(
        "it computes in bfloat16 whatever is asked, and its levels are others from two steps on",
        "one step, in bfloat16, its format whatever is asked: no further from diffusers in bfloat16 than these "
        "are from themselves in float32; from two steps on its levels are others",
        half=True,
    ),
    "LongCatImagePipeline": Known(
        otherwise="not to write its prompt anew (`enable_prompt_rewrite`)", own={"enable_prompt_rewrite": False}
    ),
    "OvisImagePipeline": Known(
        "a line break in what it says to its encoder, and 256 tokens whatever is asked",
        "no `max_sequence_length`, which it does not use; what it says to its encoder has a line break where diffusers "
        "have a blank, which the tiny tokenizer takes for the same",
        usual=("max_sequence_length",),
    ),
    "ZImagePipeline": Known(
        "its last step stands still", "one step more: its last one stands still, as diffusers' did before", steps=1
    ),
}
"""By architecture."""

Row = tuple[str, dict[str, str]]
"""An architecture, and how far it came."""

TROUBLE = (ImportError, AttributeError, NameError, TypeError, ValueError, RuntimeError, OSError, OmnimuseError)


def files_of(source: Path) -> Iterator[tuple[str, str]]:
    """(path, text) of the model files and the registry, of a wheel or a folder."""
    if source.is_dir():
        for path in sorted(source.rglob("*.py")):
            if wanted(name := path.relative_to(source).as_posix()):
                yield name, path.read_text(encoding="utf-8")
        return
    with zipfile.ZipFile(source) as wheel:
        for name in filter(wanted, wheel.namelist()):
            yield name, wheel.read(name).decode()


def wanted(name: str) -> bool:
    """Whether a file is one of theirs that is borrowed."""
    return name.endswith(REGISTRY) or (MODELS in name and name.endswith(".py"))


def changed(text: str, sized: Mapping[str, set[str]]) -> str:
    """A model file with the roots of its imports changed: to the door's, and to the copies of its neighbours.

    Modules in `sized` are taken from the copies whose networks have the sizes of the checkpoint.
    """

    def other(found: re.Match[str]) -> str:
        indent, verb, root, rest = found.groups()
        if f"{root}{rest}" in sized:
            return f"{indent}{verb} {SIZED}{rest.removeprefix(OWN)}"
        if root == "vllm_omni" and rest.startswith(OWN) and not rest.startswith(f"{OWN}.interface"):
            return f"{indent}{verb} {BORROWED}{rest.removeprefix(OWN)}"
        return f"{indent}{verb} omnimuse.compat.{root}{rest}"

    return IMPORT.sub(other, text)


def unsized(text: str) -> dict[str, set[str]]:
    """Of a pipeline's file, the networks that it makes from no configuration, by their modules.

    Such a one has the sizes that were published, which no tiny checkpoint has.
    """
    tree = ast.parse(text)
    made: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Assign(
                targets=[ast.Attribute(value=ast.Name(id="self"), attr=("transformer" | "transformer_2"))],
                value=ast.Call(func=ast.Name(id=name), keywords=words),
            ) if all(word.arg for word in words):
                made.add(name)
    found: defaultdict[str, set[str]] = defaultdict(set)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"vllm_omni{OWN}."):
            for name in {each.name for each in node.names} & made:
                found[node.module].add(name)
    return found


def sizes_of(network: type[nn.Module]) -> dict[str, Any]:
    """What the constructor of `network` has arguments for, of the configuration in the checkpoint."""
    from omnimuse.compat.contract.surroundings import here
    from omnimuse.compat.vllm_omni.diffusion.utils.tf_utils import get_transformer_config_kwargs

    return get_transformer_config_kwargs(here("a sized network").config.tf_model_config, network)


def tables_of(registry: str) -> dict[str, dict[str, object]]:
    """The tables of their registry that the door reads."""
    found: dict[str, dict[str, object]] = {name: {} for name in TABLES}
    for node in ast.parse(registry).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Dict() as value) if name in found:
                found[name] = ast.literal_eval(value)
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.Dict() as value) if name in found:
                found[name] = ast.literal_eval(value)
    return found


def write(path: Path, text: str) -> None:
    """A file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def borrow(source: Path, place: Path, only: Sequence[str] = ()) -> dict[str, dict[str, object]]:
    """Copy what is checked into `place`, as a plugin; the tables of its registry. Networks get the sizes of checkpoints
    for all architectures, or `only` for these.
    """
    files = dict(files_of(source))
    registry = next((text for name, text in files.items() if name.endswith(REGISTRY)), "")
    tables = tables_of(registry)
    if not registry:
        raise SystemExit(f"{source} has no {REGISTRY}; name a wheel of vLLM-Omni, or a folder that has one unpacked")
    asked: list[Any] = [row for arch, row in tables[TABLES[0]].items() if not only or arch in only]
    pipelines = {"/".join(filter(None, (folder, f"{file}.py"))) for folder, file, _ in asked}
    for name, text in files.items():
        if (at := name.find(MODELS)) < 0:
            continue
        path = name[at + len(MODELS) :]
        networks = unsized(text) if path in pipelines else {}
        write(place / BORROWED / path, changed(text, networks))
        for module, names in networks.items():
            where = module.removeprefix(f"vllm_omni{OWN}")
            made = "".join(SIZED_NETWORK.format(name=each) for each in sorted(names))
            sized = place / SIZED.replace(".", "/") / f"{where[1:].replace('.', '/')}.py"
            write(sized, WITH_SIZES.format(module=f"{BORROWED}{where}") + made)
    (place / BORROWED / "__init__.py").write_text('"""Borrowed for a check."""\n', encoding="utf-8")
    lines = [f"{name} = {table!r}" for name, table in tables.items()]
    (place / BORROWED / "registry.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tables


def families() -> Sequence[Any]:
    """The tiny checkpoints that there are."""
    from tests.checkpoints import hidream_image
    from tests.checkpoints.families import FAMILIES

    return (*FAMILIES, *hidream_image.OTHERS)


# -- in a process of its own -----------------------------------------------------------------------------------------


def imported(folder: str, file: str, name: str) -> str:
    """Import a pipeline's module; why that cannot be, or empty."""
    try:
        module = importlib.import_module(".".join(part for part in (BORROWED, folder, file) if part))
    except TROUBLE as problem:
        return f"{type(problem).__name__}: {problem}"
    return "" if hasattr(module, name) else f"there is no {name}"


def as_published(folder: Path) -> Path:
    """The checkpoint with what published ones have besides, which diffusers do without.

    Text encoders that are models that write have all below `model`; where one sees pictures, there is its processor.
    To chats any white space is a blank, for a published file breaks a line in the middle of what it says there.
    """
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    path = folder / "text_encoder" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if config.get("architectures") == ["Qwen3Model"]:
        config |= {"architectures": ["Qwen3ForCausalLM"], "tie_word_embeddings": True}
        path.write_text(json.dumps(config), encoding="utf-8")
        weights = path.with_name("model.safetensors")
        save_file({f"model.{name}": each for name, each in load_file(weights).items()}, weights, {"format": "pt"})
    template = folder / "tokenizer" / "chat_template.jinja"
    if template.is_file():
        words = template.read_text(encoding="utf-8")
        blanks = "(message.content.split() | join(' ') if message.content is string else message.content)"
        template.write_text(words.replace("message.content", blanks), encoding="utf-8")
    if config.get("model_type") == "qwen2_5_vl" and not any(folder.glob("*processor")):
        AutoTokenizer.from_pretrained(folder / "tokenizer").save_pretrained(folder / "text_processor")
        Qwen2VLImageProcessorPil().save_pretrained(folder / "text_processor")
    return folder


def draw(arch: str, kind: str) -> Iterator[str]:
    """Build the tiny checkpoint of that architecture and kind, and draw its first wish; the stages that it reaches."""
    from omnimuse import Config, ModelConfig, Omni
    from omnimuse.core.config import ContractConfig
    from tests.checkpoints import hidream_image

    family = next(each for each in families() if (each.arch, each.kind) == (arch, kind))
    with tempfile.TemporaryDirectory() as place:
        folder = as_published(family.build(Path(place) / "tiny"))
        wish = next((each for each in family.wishes if not each.images), family.wishes[0])
        known = KNOWN.get(arch, Known())
        wish = replace(wish, params=replace(wish.params, **dict.fromkeys(known.usual)))
        kind = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["transformer"][1]
        with traced(kind) as expecting:
            expected, close = family.reference(folder, [wish], "pt"), CLOSE
        if known.half:
            with traced(kind) as expecting:
                [exact], expected = expected, hidream_image.reference(folder, [wish], "pt", torch.bfloat16)
            close = float((expected[0].float() - exact).abs().max())
        model = ModelConfig(str(folder), "bfloat16" if known.half else "float32", "cpu", plugins=(BORROWED,))
        encoder = str(folder / hidream_image.LLAMA) if (folder / hidream_image.LLAMA).is_dir() else None
        with Omni(str(folder), config=Config(model, contract=ContractConfig(encoder=encoder))) as omni:
            yield "builds"
            own, steps = {**(wish.params.extra or {}), **known.own}, wish.params.num_inference_steps + known.steps
            extra = {"extra_args": own} if own else None
            params = replace(wish.params, output_type="pt", num_inference_steps=steps, extra=extra)
            with traced(kind) as seen:
                [found] = omni.generate([wish.asked], params, progress=False)
            if found.error is not None:
                raise found.error
            yield "draws"
            [made] = found.tensors.values()
            if apart := parted(made[0].float(), expected[0].float(), close):
                raise SystemExit(f"differs: {apart}; {parting(seen, expecting, known.half) or 'no module parts'}")
            yield "agrees"


def parted(made: Tensor, expected: Tensor, close: float = CLOSE) -> str:
    """How far two outputs are apart; empty if they are `close`.

    A picture that was rounded to 8 bits is compared with the other one rounded so: of numbers that are apart by a small
    part of a level, as large a part falls to another level, so that the average tells how far they were apart.
    """
    if made.shape != expected.shape:
        return f"shapes {tuple(made.shape)} and {tuple(expected.shape)}"
    rounded = torch.equal(made, (made * 255).round() / 255)
    far = (made - ((expected * 255).round() / 255 if rounded else expected)).abs()
    if rounded and far.max() < 1.5 / 255:
        return "" if far.mean() <= close else f"{far.mean():.2g} on average"
    return "" if far.max() <= close else f"by up to {far.max():.2g}"


# -- the report ------------------------------------------------------------------------------------------------------


def inside(place: Path, row: Sequence[str], known: tuple[str, str] | None, say: Connection) -> None:
    """What a process of its own does for a pipeline: import it, and draw the tiny checkpoint that is `known`."""
    for limit, most in ((resource.RLIMIT_CPU, LONGEST), (resource.RLIMIT_AS, MOST)):
        resource.setrlimit(limit, (most, most))  # some networks are as large as published, always
    sys.stdout = sys.stderr = said = (place / SAID).open("w", buffering=1, encoding="utf-8")
    for stream in (1, 2):
        os.dup2(said.fileno(), stream)
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(place))
    why = imported(*row)
    say.send(("imports", why or "yes"))
    if known and not why:
        try:
            for stage in draw(*known):
                say.send((stage, "yes"))
        except TROUBLE as problem:
            raise SystemExit(f"{type(problem).__name__}: {' '.join(str(problem).split())[:SHOWN]}") from problem


def tried(place: Path, row: Sequence[str], known: tuple[str, str] | None) -> dict[str, str]:
    """How far a pipeline comes, stage by stage: `yes`, or why not.

    Its process is forked from this one, which has imported what all of them need, and computes nothing itself.
    """
    context = get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=inside, args=(place, row, known, theirs))
    process.start()
    theirs.close()
    stages: dict[str, str] = {}
    try:
        while True:
            stage, how = ours.recv()
            stages[stage] = how
    except EOFError:
        process.join()
    if code := process.exitcode or 0:
        missed = next((stage for stage in STAGES if stage not in stages), STAGES[-1])
        told = (place / SAID).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        stages[missed] = ended(-code) if code < 0 else told[-1] if told else "it ended without a word"
    return stages


def ended(signal: int) -> str:
    """What such a signal means to people."""
    return f"it took more than {LONGEST} s" if signal == SIGXCPU else f"it was ended by {Signals(signal).name}"


def report(source: Path, only: list[str], kept: Path | None = None) -> list[Row]:
    """Of every architecture, stage by stage: `yes`, or why not; stages that were not reached are left out.

    What is `kept` in a file is not tried again, and what is found is added to it.
    """
    before = dict(map(json.loads, kept.read_text(encoding="utf-8").splitlines())) if kept and kept.is_file() else {}
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        models: dict[str, Any] = borrow(source, place, only)[TABLES[0]]
        models = {arch: row for arch, row in models.items() if not only or arch in only}
        if unknown := sorted(set(only) - set(models)):
            raise SystemExit(f"{source} has no {', '.join(unknown)} in its {REGISTRY}")
        found = [(arch, before[arch]) for arch in models if arch in before]
        models = {arch: row for arch, row in models.items() if arch not in before}
        checkpoints = [(family.arch, family.kind) for family in families()] if models else []
        for arch, row in models.items():
            found.append((arch, best(place, row, [each for each in checkpoints if each[0] == arch])))
            print(told(*found[-1]), flush=True)
            if kept is not None:
                with kept.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(found[-1]) + "\n")
    return found


def best(place: Path, row: Sequence[str], checkpoints: Sequence[tuple[str, str]]) -> dict[str, str]:
    """How far a pipeline comes with that of its checkpoints with which it comes farthest."""
    found: list[dict[str, str]] = []
    for known in checkpoints or (None,):
        found.append(tried(place, row, known))
        if far(found[-1]) == len(STAGES):
            break
    stages = max(found, key=far)
    if known and far(stages) == len(STAGES) and (but := KNOWN.get(known[0], Known()).but):
        stages["agrees"] = f"yes, but for {but}"
    return stages


def far(stages: Mapping[str, str]) -> int:
    """How many stages were reached."""
    return sum(how.startswith("yes") for how in stages.values())


def told(arch: str, stages: Mapping[str, str]) -> str:
    """One line of the report."""
    return f"{arch}: " + "; ".join(f"{stage} {how}" for stage, how in stages.items())


def table(found: Sequence[Row]) -> str:
    """Those that agree as `docs/compat.md` shows them."""
    lines = ["| pipeline | agrees | what it was asked otherwise |", "|---|---|---|"]
    for arch, stages in found:
        if "agrees" in stages:
            how = "yes" if stages["agrees"].startswith("yes") else stages["agrees"]
            lines.append(f"| `{arch}` | {how} | {KNOWN.get(arch, Known()).otherwise} |".replace("|  |", "| |"))
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="WHEEL_OR_FOLDER")
    parser.add_argument("only", nargs="*", metavar="ARCH", help="only these (default: all of the registry)")
    parser.add_argument("--kept", type=Path, metavar="FILE", help="go on from what this file has, and add to it")
    args = parser.parse_args()
    found = report(args.source, args.only, args.kept)
    for stage in STAGES:
        print(f"{stage}: {sum(stages.get(stage, '').startswith('yes') for _, stages in found)} of {len(found)}")
    print(f"\n{table(found)}", end="")


if __name__ == "__main__":
    main()
