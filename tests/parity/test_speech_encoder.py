"""The encoder of the speech codec: the codes that the published code makes of the same sounds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from omnimuse.components.speech_encoder import RULES, SpeechEncoder
from omnimuse.core.config import Config, ModelConfig
from omnimuse.core.errors import ModelError
from omnimuse.loader.rules import apply_rules
from omnimuse.media.recording import samples_of
from omnimuse.worker.find import find
from tests.checkpoints import qwen3_tts


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen3_tts.build(tmp_path_factory.mktemp("encoder") / "tiny", kind="base") / "speech_tokenizer"


def config(codec: Path, **changes: Any) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads((codec / "config.json").read_text())
    inner = {**whole["encoder_config"], **changes.pop("encoder_config", {})}
    return {**whole, "encoder_config": inner, **changes}


@torch.inference_mode()
def test_codes_of_sounds_are_those_that_the_published_code_makes(codec: Path) -> None:
    encoder, tensors = SpeechEncoder.from_config(config(codec)), dict[str, torch.Tensor]()
    for name, tensor in load_file(codec / "model.safetensors").items():
        if ours := apply_rules(name, RULES).name:
            tensors[ours] = tensor
    encoder.load_state_dict(tensors)
    expected = qwen3_tts.encoded()
    for sound, codes in zip(qwen3_tts.SOUNDS, expected, strict=True):
        found = encoder(torch.from_numpy(samples_of(sound, 24_000, 1)[0]))
        assert torch.equal(found, codes)
    assert len({tuple(row) for codes in expected for row in codes.tolist()}) > 40, "frames are told apart"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"encode_downsample_rate": 1000}, "makes no frames of 1000 samples with 4 codes"),
        ({"encode_downsample_rate": 960}, "makes no frames of 960 samples"),
        ({"encoder_valid_num_quantizers": 9}, "makes no frames of 1920 samples with 9 codes"),
        ({"encoder_config": {"use_causal_conv": False}}, "use_causal_conv=False is not supported; only True is"),
        ({"encoder_config": {"hidden_act": "silu"}}, "hidden_act='silu' is not supported"),
    ],
)
def test_an_encoder_that_cannot_be_is_refused(codec: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        SpeechEncoder.from_config(config(codec, **changes))


@pytest.mark.parametrize(
    ("file", "changes", "says"),
    [
        ("config.json", {"tokenizer_type": "qwen3_tts_tokenizer_25hz"}, "25hz' is not supported; only '.*_12hz' is"),
        (
            "speech_tokenizer/config.json",
            {"architectures": ["Qwen3TTSTokenizerV1Model"]},
            "is a Qwen3TTSTokenizerV1Model; .* works here with Qwen3TTSTokenizerV2Model",
        ),
    ],
    ids=["by what the model says", "by what the codec says"],
)
def test_a_codec_of_25_frames_a_second_is_refused(
    codec: Path, tmp_path: Path, file: str, changes: dict[str, Any], says: str
) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(codec.parent, folder)
    told = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**told, **changes}))
    with pytest.raises(ModelError, match=says):
        find(Config(ModelConfig(str(folder))))


def test_a_codec_without_an_encoder_is_refused(codec: Path) -> None:
    whole = config(codec)
    del whole["encoder_config"]
    with pytest.raises(ModelError, match="has no encoder_config; use a complete checkpoint"):
        SpeechEncoder.from_config(whole)
