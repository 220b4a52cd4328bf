"""What is known of the published checkpoint without loading it, and what a configuration may not say."""

from __future__ import annotations

from typing import Any

import pytest

from omnimuse.core.errors import ModelError
from omnimuse.core.request import Ask, Door
from omnimuse.core.spec import Named
from omnimuse.models.stable_audio.spec import SPEC
from omnimuse.models.stable_audio.transformer import StableAudioTransformer

PUBLISHED: dict[str, dict[str, Any]] = {
    "transformer": {"sample_size": 1024, "num_layers": 24, "num_attention_heads": 24},
    "vae": {"downsampling_ratios": [2, 4, 4, 8, 8], "sampling_rate": 44100, "audio_channels": 2},
    "tokenizer": {"model_max_length": 128},
    "options": {},
}


def test_the_published_checkpoint_makes_47_and_a_half_seconds_in_stereo() -> None:
    door = Door.of(SPEC, PUBLISHED, "stabilityai/stable-audio-open-1.0")
    sound = door.limits.sound
    assert sound is not None
    assert (sound.rate, sound.channels, sound.max_inputs) == (44100, 2, 1)
    assert sound.seconds == pytest.approx(47.554, abs=1e-3)
    request = door.make_request(Ask("rain"), 0.0, 7)
    assert request.params.seconds == sound.seconds
    assert (request.params.num_inference_steps, request.params.guidance_scale) == (100, 7.0)
    assert (request.params.max_sequence_length, request.params.strength) == (128, None)


def test_it_is_recognised_by_its_name_or_its_size() -> None:
    by_size = SPEC.recognise((), PUBLISHED)
    assert (by_size.variant.name, by_size.sure) == ("Stable-Audio-Open-1.0", True)
    by_name = SPEC.recognise((Named("stable-audio-open-1.0", "its folder"),), PUBLISHED)
    assert by_name.variant.name == "Stable-Audio-Open-1.0"
    small = {**PUBLISHED, "transformer": {"sample_size": 256}}
    assert not SPEC.recognise((), small).sure


def test_a_network_that_cannot_be_is_refused() -> None:
    with pytest.raises(ModelError, match="is no multiple of num_key_value_attention_heads=5"):
        StableAudioTransformer.from_config({"num_key_value_attention_heads": 5})
    with pytest.raises(ModelError, match="unknown key 'local_add_cond_dim'"):
        StableAudioTransformer.from_config({"local_add_cond_dim": 65})
