"""The lock and the bill of materials: made of what pip reports; the project's own agree with what it asks for."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from omnimuse import __version__
from tools.lock import BILL, EXTRAS, LOCK, ROOT, bill, lock, normal, read_report

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LINE = re.compile(r"([a-z0-9-]+)==(\S+)((?: --hash=sha256:[0-9a-f]{64})+)")


def locked() -> dict[str, tuple[str, set[str]]]:
    """Name -> version and hashes, as the lock of the project has them."""
    lines = [line for line in (ROOT / LOCK).read_text().splitlines() if not line.startswith("#")]
    found = [LINE.fullmatch(line) for line in lines]
    assert all(found), "every line is a version with its hashes"
    return {m[1]: (m[2], set(m[3].replace("--hash=sha256:", "").split())) for m in found if m}


def billed() -> dict[str, Any]:
    return dict(json.loads((ROOT / BILL).read_text()))


def asked() -> list[Requirement]:
    """What pyproject.toml asks for: the base, the extras of a server, and what builds the package."""
    project = PROJECT["project"]
    extras = [line for extra in EXTRAS for line in project["optional-dependencies"][extra]]
    return [Requirement(line) for line in (*project["dependencies"], *extras, *PROJECT["build-system"]["requires"])]


def test_the_lock_has_a_fitting_version_of_everything_that_the_project_asks_for() -> None:
    versions = locked()
    for requirement in asked():
        version, _ = versions[normal(requirement.name)]
        assert requirement.specifier.contains(Version(version).public), f"run `make lock`: {requirement}, not {version}"


def test_the_lock_has_the_versions_of_the_constraints() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    versions = {name: Version(version).public for name, (version, _) in locked().items()}
    stale = {name for name, version in pinned.items() if versions.get(normal(name), version) != version}
    assert not stale, "run `make lock`"
    assert {normal(requirement.name) for requirement in asked()} - {"hatchling"} <= {normal(name) for name in pinned}


def test_torch_is_the_build_for_a_cpu_and_brings_nothing_for_an_accelerator() -> None:
    versions = locked()
    assert versions["torch"][0].endswith("+cpu")
    assert not [name for name in versions if name.startswith(("nvidia", "cuda", "triton"))]


def test_the_bill_says_what_the_lock_says() -> None:
    components = billed()["components"]
    told = {c["name"]: (c["version"], {h["content"] for h in c["hashes"]}) for c in components}
    assert told == locked()
    assert len({c["bom-ref"] for c in components}) == len(components)
    assert all(h["alg"] == "SHA-256" for c in components for h in c["hashes"])


def test_everything_in_the_bill_is_there_for_the_sake_of_what_the_project_asks_for() -> None:
    document = billed()
    own = document["metadata"]["component"]
    assert own["version"] == __version__
    needs = {entry["ref"]: entry["dependsOn"] for entry in document["dependencies"]}
    names = {c["bom-ref"]: c["name"] for c in document["components"]}
    assert {names[ref] for ref in needs[own["bom-ref"]]} == {normal(requirement.name) for requirement in asked()}
    reached, open_ends = set[str](), [own["bom-ref"]]
    while open_ends:
        for ref in needs[open_ends.pop()]:
            if ref not in reached:
                reached.add(ref)
                open_ends.append(ref)
    assert reached == set(names), "nothing is left over, and nothing is missing"


@pytest.mark.parametrize("name", [LOCK, BILL])
def test_no_address_is_named(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "://" not in text and "file:" not in text and "index-url" not in text


# -- the tool ------------------------------------------------------------------------------------------------------


def item(name: str, version: str, needs: list[str], sha256: str | None = "a" * 64, **about: Any) -> dict[str, Any]:
    """One package as pip reports it."""
    info = {} if sha256 is None else {"archive_info": {"hashes": {"sha256": sha256}}}
    return {"metadata": {"name": name, "version": version, "requires_dist": needs, **about}, "download_info": info}


REPORT = {
    "install": [
        item("omnimuse", "9.9", ["Big_Lib>=1", 'server; extra == "serve"', 'tester; extra == "test"'], None),
        item("Big.Lib", "1.0+cpu", ['small; python_version >= "3"', 'other; sys_platform == "nowhere"'], license="MIT"),
        item(
            "small", "2", ['server; extra == "all"'], license="long\ntext", classifier=["License :: OSI Approved :: X"]
        ),
        item("server", "3", [], license_expression="Apache-2.0"),
        item("builder", "4", []),
    ]
}


def test_what_pip_reports_becomes_lines_and_a_graph() -> None:
    version, needs, packages = read_report(REPORT, ["builder>=4"])
    assert (version, needs) == ("9.9", ("big-lib", "builder", "server"))
    found = {package.name: package for package in packages}
    assert list(found) == ["big-lib", "builder", "server", "small"]
    assert (found["big-lib"].needs, found["small"].needs) == (("small",), ())
    assert [found[name].license for name in found] == ["MIT", "", "Apache-2.0", "X"]
    assert lock(packages).splitlines()[2] == f"big-lib==1.0+cpu --hash=sha256:{'a' * 64}"
    document = json.loads(bill(version, needs, packages))
    assert document["components"][0]["purl"] == "pkg:pypi/big-lib@1.0%2Bcpu"
    assert document["dependencies"][0]["dependsOn"] == [
        f"pkg:pypi/{name}" for name in ("big-lib@1.0%2Bcpu", "builder@4", "server@3")
    ]
    assert bill(version, needs, packages) == bill(version, needs, packages)


def test_a_package_without_a_hash_is_refused() -> None:
    with pytest.raises(ValueError, match="local 1 has no hash"):
        read_report({"install": [item("local", "1", [], None)]}, [])
