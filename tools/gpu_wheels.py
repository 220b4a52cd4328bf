"""Collects what a machine with a GPU lacks, as wheels to carry there: `make gpu-wheels`.

Such machines often come with a CUDA build of torch and its usual company, and reach no package index. These are the
packages of ours that do not come with it, at the versions of constraints.txt, for that machine's Python.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDED = (
    "diffusers",
    "transformers",
    "greenlet",
    "msgspec",
    "pyzmq",
    "importlib-metadata",
    "pytest-timeout",
    "pytest-xdist",
    "hypothesis",
    "torchsde",
    "trampoline",
)
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
    return int(bool(missing))


def read_pins() -> list[str]:
    """The lines of constraints.txt that name a version."""
    return [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line and line[0] != "#"]


if __name__ == "__main__":
    sys.exit(main())
