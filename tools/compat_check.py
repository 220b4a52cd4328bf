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
import re
import resource
import subprocess
import sys
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from omnimuse.core.errors import OmnimuseError

BORROWED = "borrowed"
MODELS = "vllm_omni/diffusion/models/"
REGISTRY = "vllm_omni/diffusion/registry.py"
IMPORT = re.compile(r"^(\s*)(from|import) +(vllm_omni|vllm)\b([\w.]*)", re.MULTILINE)
TABLES = ("_DIFFUSION_MODELS", "_DIFFUSION_PRE_PROCESS_FUNCS", "_DIFFUSION_POST_PROCESS_FUNCS")
STAGES = ("imports", "builds", "draws", "agrees")
LONGEST = 240
"""Seconds for one pipeline."""

MOST = 6 * 2**30
"""Bytes of one pipeline."""

CLOSE = 1e-4
TROUBLE = (ImportError, AttributeError, NameError, TypeError, ValueError, RuntimeError, OSError, OmnimuseError)


def files_of(source: Path) -> Iterator[tuple[str, str]]:
    """(path, text) of the model files and the registry, of a wheel or a folder."""
    if source.is_dir():
        for path in sorted(source.rglob("*.py")):
            yield path.relative_to(source).as_posix(), path.read_text(encoding="utf-8")
        return
    with zipfile.ZipFile(source) as wheel:
        for name in wheel.namelist():
            if name.endswith(".py"):
                yield name, wheel.read(name).decode()


def changed(text: str) -> str:
    """A model file with the roots of its imports changed: to the door's, and to the copies of its neighbours."""

    def other(found: re.Match[str]) -> str:
        indent, verb, root, rest = found.groups()
        own = ".diffusion.models"
        if root == "vllm_omni" and rest.startswith(own) and not rest.startswith(f"{own}.interface"):
            return f"{indent}{verb} {BORROWED}{rest.removeprefix(own)}"
        return f"{indent}{verb} omnimuse.compat.{root}{rest}"

    return IMPORT.sub(other, text)


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


def borrow(source: Path, place: Path) -> dict[str, dict[str, object]]:
    """Copy what is checked into `place`, as a plugin; the tables of its registry."""
    tables: dict[str, dict[str, object]] = {}
    for name, text in files_of(source):
        at = name.find(MODELS)
        if name.endswith(REGISTRY):
            tables = tables_of(text)
        elif at >= 0:
            path = place / BORROWED / name[at + len(MODELS) :]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(changed(text), encoding="utf-8")
    if not tables:
        raise SystemExit(f"{source} has no {REGISTRY}; name a wheel of vLLM-Omni, or a folder that has one unpacked")
    (place / BORROWED / "__init__.py").write_text('"""Borrowed for a check."""\n', encoding="utf-8")
    lines = [f"{name} = {table!r}" for name, table in tables.items()]
    (place / BORROWED / "registry.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tables


# -- in a process of its own -----------------------------------------------------------------------------------------


def imports(models: Mapping[str, list[str]]) -> None:
    """Import every module, and print what came of it."""
    for arch, (folder, file, name) in models.items():
        try:
            module = importlib.import_module(".".join(part for part in (BORROWED, folder, file) if part))
            why = "" if hasattr(module, name) else f"there is no {name}"
        except TROUBLE as problem:
            why = f"{type(problem).__name__}: {problem}"
        print(json.dumps({"arch": arch, "imports": why}), flush=True)


def draw(arch: str, kind: str) -> None:
    """Build the tiny checkpoint of that architecture and kind, and draw its first wish; print how far it came."""
    import torch

    from omnimuse import Omni
    from tests.checkpoints.families import FAMILIES

    resource.setrlimit(resource.RLIMIT_AS, (MOST, MOST))  # some networks are as large as published, always
    family = next(each for each in FAMILIES if (each.arch, each.kind) == (arch, kind))
    with tempfile.TemporaryDirectory() as place:
        folder = family.build(Path(place) / "tiny")
        wish = next((each for each in family.wishes if not each.images), family.wishes[0])
        expected = family.reference(folder, [wish], "pt")
        with Omni(str(folder), plugin=BORROWED, dtype="float32", device="cpu") as omni:
            print("builds", flush=True)
            [found] = omni.generate([wish.asked], wish.params, output_type="pt", progress=False)
            if found.error is not None:
                raise found.error
            print("draws", flush=True)
            [made] = found.tensors.values()
            off = (
                float((made[0].float() - expected[0].float()).abs().max())
                if made[0].shape == expected[0].shape
                else None
            )
            if off is None or not off <= CLOSE:
                what = f"shapes {tuple(made[0].shape)} and {tuple(expected[0].shape)}" if off is None else f"{off:.2g}"
                raise SystemExit(f"it is not what diffusers draw: {what}")
            assert torch.isfinite(made[0]).all()
            print("agrees", flush=True)


# -- the report ------------------------------------------------------------------------------------------------------


def child(place: Path, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """This file in a process that finds the borrowed package."""
    program = f"import sys; sys.path.insert(0, {str(place)!r}); from tools import compat_check; compat_check.inside()"
    command = [sys.executable, "-W", "ignore", "-c", program, *words]
    try:
        return subprocess.run(command, input=given, capture_output=True, text=True, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"it took more than {LONGEST} s")


def inside() -> None:
    """What such a process does."""
    if sys.argv[1:]:
        draw(*sys.argv[1:])
    else:
        imports(json.load(sys.stdin))


def report(source: Path, only: list[str]) -> list[tuple[str, dict[str, str]]]:
    """Of every architecture, stage by stage: `yes`, or why not; stages that were not reached are left out."""
    from tests.checkpoints.families import FAMILIES

    kinds: defaultdict[str, list[str]] = defaultdict(list)
    for family in FAMILIES:
        kinds[family.arch].append(family.kind)
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        models = {arch: row for arch, row in borrow(source, place)[TABLES[0]].items() if not only or arch in only}
        lines = child(place, given=json.dumps(models)).stdout.splitlines()
        found = []
        for line in map(json.loads, lines):
            stages = {"imports": line["imports"] or "yes"}
            if not line["imports"]:
                tried = [drawn(place, line["arch"], kind) for kind in kinds[line["arch"]]]
                best: dict[str, str] = max(tried, key=far, default={})
                stages |= best
            found.append((line["arch"], stages))
            print(told(*found[-1]), flush=True)
    return found


def far(stages: Mapping[str, str]) -> int:
    """How many stages were reached."""
    return list(stages.values()).count("yes")


def drawn(place: Path, arch: str, kind: str) -> dict[str, str]:
    """How far one of its tiny checkpoints comes, behind the import."""
    done = child(place, arch, kind)
    stages = dict.fromkeys([word for word in done.stdout.split() if word in STAGES], "yes")
    if done.returncode:
        missed = next((stage for stage in STAGES[1:] if stage not in stages), "agrees")
        stages[missed] = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
    return stages


def told(arch: str, stages: Mapping[str, str]) -> str:
    """One line of the report."""
    return f"{arch}: " + "; ".join(f"{stage} {how}" for stage, how in stages.items())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="WHEEL_OR_FOLDER")
    parser.add_argument("only", nargs="*", metavar="ARCH", help="only these (default: all of the registry)")
    args = parser.parse_args()
    found = report(args.source, args.only)
    for stage in STAGES:
        print(f"{stage}: {sum(stages.get(stage) == 'yes' for _, stages in found)} of {len(found)}")


if __name__ == "__main__":
    main()
