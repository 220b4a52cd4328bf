"""What the spec of every family must say so that its checkpoints can be built, and how a slip is told."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import pytest

from omnimuse.core.errors import ModelError
from omnimuse.core.registry import Registry
from omnimuse.core.spec import Spec
from omnimuse.loader.named import import_named
from omnimuse.models import REGISTRY, TABLE

SPECS = REGISTRY.specs()


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.arch)
def test_every_table_of_names_that_a_family_has_is_used_by_a_component(spec: Spec) -> None:
    package = TABLE[spec.arch]
    if find_spec(f"{package}.weights") is None:
        pytest.skip("a kind of another family, whose network it uses")
    used = {component.rules for component in spec.components.values()}
    assert used & {f"{package}.weights:RULES", f"{package}.weights:rules"}, "a table, or a function that finds it"


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.arch)
def test_every_network_and_every_table_that_a_spec_names_is_there(spec: Spec) -> None:
    for component in spec.components.values():
        if component.network:
            assert callable(import_named(component.network).from_config)
        if component.rules:
            assert import_named(component.rules)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("omnimuse.components.no_such:Thing", "No module named 'omnimuse.components.no_such'"),
        ("omnimuse.components.qwen3:Qwen4Encoder", "has no attribute 'Qwen4Encoder'"),
        ("omnimuse.components.qwen3.Qwen3Encoder", "No module named 'omnimuse.components.qwen3.Qwen3Encoder'"),
    ],
)
def test_a_path_that_names_nothing_is_told_with_the_reason(path: str, why: str) -> None:
    with pytest.raises(ModelError) as caught:
        import_named(path)
    assert repr(path) in str(caught.value)
    assert why in str(caught.value)


def test_an_architecture_that_a_table_and_a_spec_write_differently_is_told_with_both() -> None:
    arch, package = next(iter(TABLE.items()))
    misspelt = Registry({f"{arch}x": package})
    with pytest.raises(ModelError, match=rf"for '{arch}x', but its spec has arch='{arch}'"):
        misspelt.spec(f"{arch}x")
    with pytest.raises(ModelError, match=rf"for '{arch}x', but its spec has arch='{arch}'"):
        misspelt.covers("AnotherPipeline")
    assert import_module(f"{package}.spec").SPEC.arch == arch
