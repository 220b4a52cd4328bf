"""`make lock`: what a deployment installs, to the byte, as `requirements.lock` and a bill of materials, `bom.cdx.json`.

pip resolves the base, the extras of a server and what builds the package, within `constraints.txt`, for the Python and
the system that run this; nothing is installed. The lock has the versions and hashes for `pip install --require-hashes`.
The bill is CycloneDX. Neither says where files came from.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("serve", "sound", "video")
"""What a server needs beside the base."""
LOCK, BILL = "requirements.lock", "bom.cdx.json"
OURSELVES = "omnimuse"


@dataclass(frozen=True)
class Package:
    """One package as it is installed; `needs` are the names of the others that it needs here."""

    name: str
    version: str
    sha256: tuple[str, ...]
    license: str
    needs: tuple[str, ...]

    @property
    def url(self) -> str:
        """Its name among all packages of all languages."""
        return f"pkg:pypi/{self.name}@{self.version.replace('+', '%2B')}"


def main() -> int:
    """Write both files; 0 when that is done."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--only-binary", ":all:", "--report", str(report)]
        command += [
            "-c",
            str(ROOT / "constraints.txt"),
            f"{ROOT}[{','.join(EXTRAS)}]",
            *project["build-system"]["requires"],
        ]
        subprocess.run(command, check=True)
        found = json.loads(report.read_text(encoding="utf-8"))
    version, needs, packages = read_report(found, project["build-system"]["requires"])
    (ROOT / LOCK).write_text(lock(packages), encoding="utf-8")
    (ROOT / BILL).write_text(bill(version, needs, packages), encoding="utf-8")
    print(f"{LOCK} and {BILL}: {len(packages)} packages")
    return 0


def normal(name: str) -> str:
    """The one spelling of a package's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_report(report: Mapping[str, Any], build: Sequence[str]) -> tuple[str, tuple[str, ...], list[Package]]:
    """Our own version, what we need (to be built, too), and all that is installed for it, by name.

    ValueError for a package without a hash: it comes from a folder, and nobody could install it elsewhere.
    """
    names = frozenset(normal(item["metadata"]["name"]) for item in report["install"])
    version_of_ours, needs_of_ours, packages = "", tuple[str, ...](), list[Package]()
    for item in report["install"]:
        about = item["metadata"]
        name, version = normal(about["name"]), about["version"]
        if name == OURSELVES:
            version_of_ours, needs_of_ours = version, needed([*about.get("requires_dist", ()), *build], EXTRAS, names)
            continue
        hashes = item["download_info"].get("archive_info", {}).get("hashes", {})
        if "sha256" not in hashes:
            raise ValueError(f"{name} {version} has no hash; it must come from an index or a folder of wheels")
        needs = needed(about.get("requires_dist", ()), item.get("requested_extras", ()), names)
        packages.append(Package(name, version, (hashes["sha256"],), license_of(about), needs))
    return version_of_ours, needs_of_ours, sorted(packages, key=lambda package: package.name)


def needed(requirements: Sequence[str], extras: Sequence[str], among: frozenset[str]) -> tuple[str, ...]:
    """The names of those `requirements` that count on this system, and with these extras."""
    found = set()
    for requirement in map(Requirement, requirements):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            found.add(normal(requirement.name))
    return tuple(sorted(found & among))


def license_of(about: Mapping[str, Any]) -> str:
    """What a package says of its license: an expression, a short text or a classifier; "" if nothing."""
    text = str(about.get("license_expression") or about.get("license") or "").strip()
    if text and len(text) <= 60 and "\n" not in text:
        return text
    known = [
        line.rpartition(" :: ")[2]
        for line in about.get("classifiers", about.get("classifier", ()))
        if "License ::" in line
    ]
    return " AND ".join(known)


def lock(packages: Sequence[Package]) -> str:
    """The lines of a requirements file, each version with the hashes of the files that it may be."""
    python = f"{platform.python_implementation()} {sys.version_info.major}.{sys.version_info.minor}"
    system = f"{platform.system()} {platform.machine()}"
    lines = [
        f"# Made by `make lock` for {python} on {system}: what a server installs, to the byte.",
        "# docs/serving.md says how to install it. Change constraints.txt, not this file.",
    ]
    for package in packages:
        hashes = " ".join(f"--hash=sha256:{digest}" for digest in package.sha256)
        lines.append(f"{package.name}=={package.version} {hashes}")
    return "\n".join(lines) + "\n"


def bill(version: str, needs: Sequence[str], packages: Sequence[Package]) -> str:
    """The bill of materials: the same for the same packages, so it has neither a date nor a serial number."""
    own = f"pkg:pypi/{OURSELVES}@{version}"
    places = {package.name: package.url for package in packages}
    graph = [(own, needs), *((package.url, package.needs) for package in packages)]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {"type": "application", "bom-ref": own, "name": OURSELVES, "version": version, "purl": own}
        },
        "components": [_component(package) for package in packages],
        "dependencies": [{"ref": ref, "dependsOn": [places[name] for name in names]} for ref, names in graph],
    }
    return json.dumps(document, indent=1) + "\n"


def _component(package: Package) -> dict[str, Any]:
    told = {"licenses": [{"license": {"name": package.license}}]} if package.license else {}
    return {
        "type": "library",
        "bom-ref": package.url,
        "name": package.name,
        "version": package.version,
        "purl": package.url,
        "hashes": [{"alg": "SHA-256", "content": digest} for digest in package.sha256],
        **told,
    }


if __name__ == "__main__":
    sys.exit(main())
