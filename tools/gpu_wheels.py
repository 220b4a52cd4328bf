"""Collects what a machine with a GPU lacks, as wheels to carry there: `make gpu-wheels`.

Such machines often come with a CUDA build of torch and its usual company, and reach no package index. These are the
packages of ours that do not come with it, at the versions of constraints.txt, for that machine's Python; what they ask
of that company is printed. `tests/unit/tools/test_gpu_wheels.py` begins the tests of a GPU with both and nothing else.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDED = (
    "diffusers",
    "transformers",
    "greenlet",
    "msgspec",
    "pyzmq",
    "importlib-metadata",
    "lazy-importer",
    "pytest-timeout",
    "pytest-xdist",
    "hypothesis",
    "torchsde",
    "trampoline",
    "gguf",
)
USUAL = (
    "torch",
    "triton",
    "numpy",
    "scipy",
    "pillow",
    "pytest",
    "execnet",
    "sortedcontainers",
    "pyyaml",
    "jinja2",
    "regex",
    "requests",
    "tqdm",
    "zipp",
    "filelock",
    "packaging",
    "typer",
    "huggingface_hub",
    "safetensors",
    "tokenizers",
)
"""What comes with torch on such a machine, with what these ask for themselves."""
TAGS = ("_2_28", "_2_27", "_2_26", "_2_24", "_2_17", "_2_5", "2014")
PLATFORMS = tuple(f"manylinux{tag}_x86_64" for tag in TAGS)


def main() -> int:
    """Download them all; 1 if one is not to be had."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="3.12", help="the version there (default: 3.12)")
    parser.add_argument("-o", "--output", type=Path, default=Path("wheels"))
    args = parser.parse_args()
    pinned = dict(line.split("==") for line in read_pins())
    missing = []
    for name in NEEDED:
        wanted = f"{name}=={pinned[name]}" if name in pinned else name
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", args.output]
        command += ["--python-version", args.python, "--implementation", "cp"]
        for platform in PLATFORMS:
            command += ["--platform", platform]
        if subprocess.run([*command, wanted], check=False).returncode:
            missing.append(wanted)
    if missing:
        print(f"not to be had for Python {args.python} on Linux x86_64: {', '.join(missing)}", file=sys.stderr)
    print(f"{args.output} asks of what is there: {'; '.join(asked(args.output))}; and torch >= 2.11 for CUDA")
    return int(bool(missing))


def asked(folder: Path) -> list[str]:
    """What the wheels there ask for that is not among them, each in the words of its wheel."""
    files = [*folder.glob("*.whl")]
    brought = {plain(file.name.split("-")[0]) for file in files}
    found = set[str]()
    for file in files:
        with zipfile.ZipFile(file) as wheel:
            [name] = [name for name in wheel.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
            lines = wheel.read(name).decode().partition("\n\n")[0].splitlines()
        wanted = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
        found |= {each for each in wanted if "extra ==" not in each}
    named = {each: plain(re.split(r"[^\w.-]", each)[0]) for each in found}
    return sorted((each for each, name in named.items() if name not in brought), key=str.lower)


def plain(name: str) -> str:
    """The name of a package as all write it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_pins() -> list[str]:
    """The lines of constraints.txt that name a version."""
    return [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line and line[0] != "#"]


if __name__ == "__main__":
    sys.exit(main())
