"""Deploy files of another engine, in both of its schemas: a model of each kind makes what it makes in one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from omnimuse.compat.vllm import SamplingParams
from omnimuse.compat.vllm_omni import Omni
from omnimuse.compat.vllm_omni.inputs.data import OmniDiffusionSamplingParams
from omnimuse.core.errors import ConfigError
from tests.checkpoints import qwen3, qwen3_tts
from tests.checkpoints.families import ALLROUNDERS, ANSWERERS, FAMILIES
from tests.once import Once

TALK = "<|im_start|>user\na red circle<|im_end|>\n<|im_start|>assistant\n"
WRITTEN: Mapping[str, Any] = {"temperature": 0.0, "max_tokens": 6}
DRAWN: Mapping[str, Any] = {"num_inference_steps": 3, "seed": 5, "height": 64, "width": 64}
ANSWERED: tuple[Mapping[str, Any], ...] = (
    {"temperature": 0.9, "max_tokens": 8, "seed": 7},
    {"temperature": 0.9, "max_tokens": 4096},
    {"temperature": 0.0, "max_tokens": 65536},
)


@dataclass(frozen=True)
class Kind:
    """A kind of model: a checkpoint, what it is asked, and what each of its stages is asked with where nobody says."""

    arch: str
    build: Any
    prompt: Mapping[str, Any]
    sampling: Sequence[Mapping[str, Any]]


KINDS = {
    "text": Kind("Qwen3", qwen3.build, {"prompt": "a red circle"}, (WRITTEN,)),
    "speech": Kind("Qwen3TTS", qwen3_tts.build, {"prompt": "a red circle"}, ({"max_tokens": 6, "seed": 3}, {})),
    **{each.name: Kind(each.name, each.build, {"prompt": TALK}, ANSWERED) for each in ANSWERERS},
    **{
        each.name: Kind(each.name, each.build, {"prompt": "a red circle"}, ({"max_tokens": 1}, DRAWN))
        for each in ALLROUNDERS
    },
    "GlmImagePipeline": Kind(
        "GlmImagePipeline",
        next(each.build for each in FAMILIES if each.arch == "GlmImagePipeline"),
        {"prompt": "a red circle"},
        ({"max_tokens": 4353, "temperature": 0.9, "top_p": 0.75, "seed": 5}, DRAWN),
    ),
}


def older(sampling: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A file of `stage_args`, with what people leave in it."""
    stages = [
        {
            "stage_id": number,
            "runtime": {"process": True, "devices": "cpu", "max_batch_size": 1},
            "engine_args": {
                "gpu_memory_utilization": 0.8,
                "enforce_eager": True,
                "tensor_parallel_size": 1,
                "worker_type": "ar",
                "custom_process_next_stage_input_func": "some.function",
                "omni_kv_config": {"need_send_cache": True},
            },
            "prompt_expand_func": "some.function",
            "cfg_kv_collect_func": "some.function",
            "tts_args": {"max_instructions_length": 500},
            "default_sampling_params": dict(asked),
        }
        for number, asked in enumerate(sampling)
    ]
    edges = [{"from": number - 1, "to": number, "window_size": -1} for number in range(1, len(stages))]
    return {"stage_args": stages, "runtime": {"enabled": True, "defaults": {"window_size": -1}, "edges": edges}}


def newer(sampling: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A file of `stages`, joined by connectors."""
    stages = list[dict[str, Any]]()
    for number, asked in enumerate(sampling):
        stage = {"stage_id": number, "max_num_seqs": 4, "devices": "cpu", "enable_prefix_caching": False}
        stages.append({**stage, "default_sampling_params": dict(asked)})
        if number:
            stages[number]["input_connectors"] = {f"from_stage_{number - 1}": "wire"}
            stages[number - 1]["output_connectors"] = {f"to_stage_{number}": "wire"}
    wire = {"name": "TcpConnector", "extra": {"codec_chunk_frames": 25}}
    return {"async_chunk": True, "connectors": {"wire": wire}, "stages": stages, "platforms": {"npu": {}}}


def opened(folder: Path, **options: Any) -> Omni:
    return Omni(model=str(folder), dtype="float32", device="cpu", **options)


def made(omni: Omni, prompt: Mapping[str, Any], *sampling: Any) -> list[Any]:
    """Of every stage what it has made, and what that is."""
    found = list[Any]()
    for output in omni.generate(dict(prompt), *sampling, use_tqdm=False):
        [one] = output.outputs
        if output.final_output_type == "text":
            found.append((output.stage_id, one.text, one.token_ids))
        elif output.final_output_type == "audio":
            found.append((output.stage_id, one.multimodal_output["audio"].tolist()))
        else:
            found.append((output.stage_id, np.asarray(output.images[0]).tolist()))
    return found


def by_hand(kind: Kind) -> list[Any]:
    """The same sampling parameters as a script writes them."""
    return [
        (OmniDiffusionSamplingParams if asked is DRAWN else SamplingParams)(**dict(asked)) for asked in kind.sampling
    ]


@pytest.mark.costly("files of stages")
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", KINDS)
def test_files_of_both_schemas_give_what_one_process_gives(name: str, once: Once, tmp_path: Path) -> None:
    kind = KINDS[name]
    folder = once.folder(kind.arch, kind.build)
    with opened(folder) as omni:
        count = len(omni.default_sampling_params_list)
        expected = made(omni, kind.prompt, by_hand(kind))
    assert count == len(kind.sampling) and expected
    for schema in (older, newer):
        file = tmp_path / f"{schema.__name__}.yaml"
        file.write_text(yaml.safe_dump(schema(kind.sampling)))
        with opened(folder, stage_configs_path=str(file)) as omni:
            assert made(omni, kind.prompt) == expected, "what the file says is what nobody else said"


@pytest.mark.costly(turns=3)
def test_what_a_file_has_requests_asked_with_is_checked_when_it_starts(once: Once, tmp_path: Path) -> None:
    folder = once.folder("Qwen3", qwen3.build)
    file = tmp_path / "stages.yaml"
    file.write_text("stages: [{stage_id: 0, default_sampling_params: {temprature: 0.5}}]")
    with pytest.raises(
        ConfigError, match=r"stages.yaml: stage 0: default_sampling_params: .*'temprature'.*temperature"
    ):
        opened(folder, stage_configs_path=str(file))
