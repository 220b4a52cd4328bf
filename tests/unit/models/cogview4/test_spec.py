"""What a checkpoint of CogView4 is refused for."""

from __future__ import annotations

import pytest

from omnimuse.core.errors import ModelError
from omnimuse.models.cogview4.spec import limits

TRANSFORMER = {"pos_embed_max_size": 128}


def test_an_autoencoder_whose_latents_are_shifted_is_refused_as_the_reference_passes_it_over() -> None:
    vae = {"block_out_channels": (8, 8, 8, 8), "scaling_factor": 1.0}
    assert limits({"vae": {**vae, "shift_factor": 0.0}, "transformer": TRANSFORMER}).max_side == 2048
    with pytest.raises(ModelError, match=r"shift_factor=0\.1159 is not supported"):
        limits({"vae": {**vae, "shift_factor": 0.1159}, "transformer": TRANSFORMER})
