"""Every attention site gets the kernel the configuration names, or the start is refused."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from omnimuse.attention.backends.sdpa import Sdpa
from omnimuse.attention.layer import Attention
from omnimuse.attention.selection import bind, bind_all
from omnimuse.core.config import AttentionConfig, Config, ModelConfig
from omnimuse.core.errors import ConfigError


def model() -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "linear": nn.Linear(2, 2),
            "image": Attention(2, 8, "self"),
            "text": Attention(2, 8, "toy.text", category="cross"),
        }
    )


def test_a_role_goes_before_its_category_and_both_before_the_default():
    choice = AttentionConfig("sdpa", {"cross": "reference", "toy.text": "sdpa", "self": "reference"})
    assert {b.site: b.backend for b in bind(model(), choice)} == {"image": "reference", "text": "sdpa"}
    choice = AttentionConfig("sdpa", {"cross": "reference"})
    assert {b.site: b.backend for b in bind(model(), choice)} == {"image": "sdpa", "text": "reference"}


def test_every_binding_says_why():
    image, text = bind(model(), AttentionConfig(per_role={"cross": "reference"}))
    assert image.reason == "default, auto: sdpa is the first that can run"
    assert text.reason == "per_role['cross'], by category"


def test_a_binding_is_what_the_site_then_uses():
    net = model()
    bind(net, AttentionConfig("reference"))
    assert [net[name].backend.name for name in ("image", "text")] == ["reference", "reference"]


def test_an_unknown_backend_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"'sdap' is unknown; did you mean 'sdpa' or "):
        bind(model(), AttentionConfig("sdap"))


def test_an_unknown_role_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"'toy.txt'; did you mean 'toy.text'\?"):
        bind(model(), AttentionConfig(per_role={"toy.txt": "sdpa"}))


def test_a_role_is_looked_for_in_all_networks_together():
    networks = {"reader": nn.Linear(2, 2), "one": Attention(2, 8, "self"), "other": Attention(2, 8, "cross")}
    chosen = Config(ModelConfig("toy"), attention=AttentionConfig(per_role={"self": "reference"}))
    one, other = bind_all(networks, chosen, torch.device("cpu"), torch.float32)
    assert (one.name, one.value) == ("one, self (1 sites)", "reference")
    assert (other.name, other.value) == ("other, cross (1 sites)", "sdpa")
    unknown = replace(chosen, attention=AttentionConfig(per_role={"croos": "reference"}))
    with pytest.raises(ConfigError, match=r"'croos'; did you mean 'cross'\? Known: cross, self"):
        bind_all(networks, unknown, torch.device("cpu"), torch.float32)


def test_a_backend_is_refused_where_nothing_would_attend_by_it():
    chosen = Config(ModelConfig("toy"), attention=AttentionConfig("reference"))
    with pytest.raises(ConfigError, match="attention=reference cannot be: no attention of ours is in reader, other;"):
        bind_all({"reader": nn.Linear(2, 2), "other": nn.Linear(2, 2)}, chosen, torch.device("cpu"), torch.float32)


def test_which_of_its_kernels_torch_takes_is_told_where_torch_chooses():
    chosen = Config(ModelConfig("toy"), attention=AttentionConfig(per_role={"self": "reference"}))
    networks = {"one": Attention(2, 8, "self"), "other": Attention(2, 8, "cross")}
    for kernel, name in ((SDPBackend.FLASH_ATTENTION, "flash"), (SDPBackend.MATH, "math")):
        with sdpa_kernel(kernel):
            one, other = bind_all(networks, chosen, torch.device("cpu"), torch.float32)
        assert "kernel" not in one.reason
        assert other.reason.endswith(f", by torch's kernel {name}")


def test_another_kernel_for_rows_with_a_mask_is_told_too(monkeypatch):
    """As torch has it on GPUs, whose flash kernel takes no mask."""
    flash, efficient = SDPBackend.FLASH_ATTENTION.value, SDPBackend.EFFICIENT_ATTENTION.value
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda q, k, v, mask: flash if mask is None else efficient)
    assert Sdpa().kernel(torch.device("cpu"), torch.float32, 8) == "flash, efficient with a mask"
    assert Sdpa().kernel(torch.device("meta"), torch.float32, 8) == "", "nobody knows"


def test_a_backend_that_cannot_run_is_refused_with_its_reason():
    with pytest.raises(ConfigError, match=r"'sdpa' cannot run at role 'self' on cpu in torch.int8.*floating point"):
        bind(model(), AttentionConfig("sdpa"), dtype=torch.int8)
    with pytest.raises(ConfigError, match="no attention backend can run"):
        bind(model(), AttentionConfig(), dtype=torch.int8)


def test_a_backend_that_cannot_merge_is_refused_where_ranks_form_a_ring():
    with pytest.raises(ConfigError, match=r"'sdpa_flash' cannot run at role 'self'.*it does not tell what keys weigh"):
        bind(model(), AttentionConfig("sdpa_flash"), weighing=True)
    assert {b.backend for b in bind(model(), AttentionConfig(), weighing=True)} == {"sdpa"}


@pytest.mark.parametrize("name", ["sdpa_cudnn", "sdpa_efficient", "flash_attn_2", "flash_attn_3", "sage", "xformers"])
def test_a_kernel_that_a_cpu_has_not_is_refused_when_the_engine_starts(name):
    with pytest.raises(ConfigError, match=f"attention backend '{name}' cannot run at role 'self' on cpu"):
        bind(model(), AttentionConfig(name))
