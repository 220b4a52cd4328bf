"""The decoder of the speech codec: what the published code makes of the same codes, and pieces that are the whole."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from omnimuse.components.speech_codec import RULES, Past, SpeechCodec
from omnimuse.core.errors import ModelError
from omnimuse.loader.rules import apply_rules
from tests.checkpoints.qwen3_tts import CODEC, codec_name

CONFIG = {**CODEC, "codebook_size": 16}
EVERY = 23
WAVE: Sequence[float] = (
    -0.052185,
    -0.685664,
    1.000000,
    -0.764528,
    1.000000,
    0.716771,
    1.000000,
    1.000000,
    -1.000000,
    -1.000000,
    -1.000000,
    1.000000,
    1.000000,
    1.000000,
    1.000000,
    -1.000000,
    -1.000000,
    1.000000,
    1.000000,
    -1.000000,
    1.000000,
    -1.000000,
    -1.000000,
    -1.000000,
    1.000000,
    1.000000,
    1.000000,
    -1.000000,
    -1.000000,
    1.000000,
    1.000000,
    1.000000,
    1.000000,
    -1.000000,
    -1.000000,
    -1.000000,
    1.000000,
    -1.000000,
    1.000000,
    -1.000000,
    -1.000000,
    -1.000000,
)
"""Every so many samples of what `Qwen3TTSTokenizerV2Decoder` of the published code (qwen-tts 0.1.1) makes."""


def filled(name: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers that depend on the published name, without the part that it is of, alone."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if name.endswith("cluster_usage"):
        return drawn.abs() + 0.5
    if len(shape) > 1:
        return drawn if name.endswith("embedding_sum") else drawn / drawn[0].numel() ** 0.5
    return 0.1 * drawn + (1.0 if name.endswith(("norm.weight", "scale", "gamma")) else 0.0)


@pytest.fixture(scope="module")
def codec() -> SpeechCodec:
    made = SpeechCodec.from_config({"decoder_config": CONFIG}).requires_grad_(False)
    for name, parameter in made.named_parameters():
        parameter.copy_(filled(codec_name(name).removeprefix("decoder."), tuple(parameter.shape)))
    return made


@pytest.fixture(scope="module")
def codes() -> Tensor:
    return torch.randint(0, 16, (1, 4, 40), generator=torch.Generator().manual_seed(3))[0]


def test_every_tensor_of_the_published_codec_has_its_place(codec: SpeechCodec) -> None:
    for name in codec.state_dict():
        assert apply_rules(codec_name(name), RULES).name == name
    for left_out in ("encoder.layers.0.conv.weight", "decoder.quantizer.rvq_rest.input_proj.weight"):
        assert apply_rules(left_out, RULES).name == ""


def test_codes_become_the_waveform_that_the_published_code_makes(codec: SpeechCodec, codes: Tensor) -> None:
    wave = codec(codes)
    assert wave.shape == (40 * codec.config.hop,)
    assert torch.allclose(wave[::EVERY], torch.tensor(WAVE), atol=1e-5)


@pytest.mark.parametrize("pieces", [(40,), (4, 25, 11), (1,) * 40, (39, 1), (2, 3, 35)])
def test_pieces_are_the_whole_whatever_their_lengths(codec: SpeechCodec, codes: Tensor, pieces: Sequence[int]) -> None:
    past, whole = Past(), codec(codes)
    found = [codec(piece, past) for piece in codes.split(list(pieces), dim=1)]
    assert [len(piece) for piece in found] == [count * codec.config.hop for count in pieces]
    assert float((torch.cat(found) - whole).norm() / whole.norm()) <= 1e-5
    assert past.frames == 40


def test_what_is_kept_of_a_long_sound_does_not_grow(codec: SpeechCodec, codes: Tensor) -> None:
    past, kept = Past(), []
    for piece in codes.repeat(1, 3).split(10, dim=1):
        codec(piece, past)
        kept.append(sum(tail.untyped_storage().nbytes() for tail in past.tails.values()))
    assert set(kept) == {kept[0]}


@pytest.mark.parametrize("change", [{"hidden_act": "gelu"}, {"num_semantic_quantizers": 2}, {"unheard_of": 1}])
def test_another_codec_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ModelError, match=next(iter(change))):
        SpeechCodec.from_config({"decoder_config": {**CONFIG, **change}})
