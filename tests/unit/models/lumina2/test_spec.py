"""What a checkpoint of Lumina 2 can be asked for, and what it cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from omnimuse.core.errors import ModelError
from omnimuse.models.lumina2.spec import SPEC
from omnimuse.models.lumina2.transformer import LuminaConfig


def test_the_image_needs_a_position_behind_the_caption() -> None:
    configs = {"transformer": {"axes_lens": [300, 512, 256]}, "vae": {"block_out_channels": [1, 2, 3, 4]}}
    limits = SPEC.limits(configs)
    assert (limits.max_sequence_length, limits.max_side, limits.size_multiple) == (299, 4096, 16)


def test_the_mlp_is_as_wide_as_the_published_checkpoints() -> None:
    assert LuminaConfig().blocks.hidden == 9216
    assert LuminaConfig(ffn_dim_multiplier=0.7).blocks.hidden == 6656  # whole multiples of 256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axes_dim_rope": [32, 32]}, "there must be three axes"),
        ({"hidden_size": 2048}, "hidden_size = heads"),
        ({"num_kv_heads": 7}, "num_kv_heads=7 does not divide num_attention_heads=24"),
        ({"scaling_factor": 2.0}, "scaling_factor=2.0 is not supported; only 1.0 is"),
    ],
)
def test_a_variant_that_is_not_computed_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        LuminaConfig.from_dict(changes)
