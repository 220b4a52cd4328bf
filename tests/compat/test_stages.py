"""Scripts for models of several stages: a list of sampling parameters in, an output of each stage out."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from omnimuse import api
from omnimuse.compat.vllm import SamplingParams
from omnimuse.compat.vllm_omni.entrypoints.async_omni import AsyncOmni
from omnimuse.compat.vllm_omni.entrypoints.omni import Omni
from omnimuse.compat.vllm_omni.inputs.data import OmniDiffusionSamplingParams
from omnimuse.compat.vllm_omni.outputs import OmniRequestOutput
from omnimuse.core.errors import RequestError
from omnimuse.media.recording import recording_of
from tests.checkpoints import qwen3, qwen3_tts, talk_and_draw
from tests.checkpoints.families import ANSWERERS, SPEAKERS
from tests.checkpoints.fixtures import folder_of_each
from tests.checkpoints.wishes import photo
from tests.once import Once

TALK = "<|im_start|>user\na red circle<|im_end|>\n<|im_start|>assistant\n"
LIST = [
    SamplingParams(temperature=0.9, max_tokens=8, seed=7),
    SamplingParams(temperature=0.9, max_tokens=4096),
    SamplingParams(temperature=0.0, max_tokens=65536),
]
"""As the documents have it: of the thinker, the talker, and what makes waves."""
STAGES = """
stage_args:
  - {stage_id: 0, final_output: true, final_output_type: text, engine_args: {limit_mm_per_prompt: {image: 1}}}
  - {stage_id: 1}
  - {stage_id: 2, stage_type: generation, final_output: true, final_output_type: audio}
"""


folder = folder_of_each(ANSWERERS)


@pytest.fixture(scope="module")
def omni(folder: Path) -> Iterator[Omni]:
    with Omni(model=str(folder), dtype="float32", device="cpu") as made:
        yield made


def alone(folder: Path, **choices: Any) -> Any:
    """What the engine's own face makes of the same."""
    usual = {"max_tokens": 8, "temperature": 0.9, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
    with api.Omni(str(folder), dtype="float32", device="cpu") as ours:
        [result] = ours.generate(TALK, progress=False, seed=7, **{**usual, **choices})
    return result


def test_a_script_gets_from_each_stage_what_omni_makes(folder: Path, omni: Omni) -> None:
    text, audio = omni.generate({"prompt": TALK}, LIST, use_tqdm=False)
    expected = alone(folder, modalities=("text", "audio"), voice_temperature=0.9)
    assert [(each.stage_id, each.final_output_type) for each in (text, audio)] == [(0, "text"), (2, "audio")]
    assert text.request_output[0].outputs[0].text == text.request_output.outputs[0].text == expected.text
    [wave] = expected.audios
    for found in (audio.request_output[0].multimodal_output, audio.request_output.outputs[0].multimodal_output):
        assert torch.equal(found["audio"], torch.from_numpy(wave.samples[0]))
        assert found["sr"] == wave.rate


def test_an_asyncio_script_gets_the_same_and_text_alone_where_no_sound_is_wanted(folder: Path, omni: Omni) -> None:
    async def run() -> list[Any]:
        made = AsyncOmni(str(folder), dtype="float32", device="cpu")
        prompt = {"prompt": TALK, "modalities": ["text"]}
        found = [output async for output in made.generate(prompt, LIST) if output.finished]
        named = made.generate({"prompt": TALK}, LIST, "mine", output_modalities=["text"])
        found += [output async for output in named if output.finished]
        with pytest.raises(RequestError, match=r"output_modalities=\['audio'\] cannot be: the prompt wants"):
            await anext(made.generate(prompt, LIST, output_modalities=["audio"]))
        with pytest.raises(RequestError, match=r"request_id 'mine' stands where .*; write request_id="):
            await anext(made.generate(prompt, "mine"))  # type: ignore[arg-type]
        await made.shutdown()
        return found

    text, named = asyncio.run(run())
    assert (named.request_id, named.outputs[0].text) == ("mine", text.outputs[0].text)
    [first, *_] = omni.generate({"prompt": TALK}, LIST, use_tqdm=False)
    assert text.outputs[0].text == first.outputs[0].text
    assert text.outputs[0].token_ids == first.outputs[0].token_ids


STREAMED = {
    **{each.name: (each.build, {"prompt": TALK}, LIST) for each in ANSWERERS},
    "writes": (qwen3.build, {"prompt": TALK}, LIST[:1]),
    "speaks": (
        qwen3_tts.build,
        {"prompt": "a star", "additional_information": {"text": ["a star"]}},
        [SamplingParams(temperature=0.9, max_tokens=24, seed=7)],
    ),
    "writes and draws": (talk_and_draw.build, {"prompt": TALK}, [LIST[0], OmniDiffusionSamplingParams(seed=7)]),
}


@pytest.mark.parametrize("model", STREAMED)
def test_an_asyncio_script_is_told_while_it_is_made_and_each_time_all_until_then(model: str, once: Once) -> None:
    build, prompt, sampling = STREAMED[model]

    async def run() -> list[OmniRequestOutput]:
        made = AsyncOmni(str(once.folder(model, build)), dtype="float32", device="cpu")
        found = [output async for output in made.generate(dict(prompt), list(sampling), "mine")]
        await made.shutdown()
        return found

    found = asyncio.run(run())
    last = {each.final_output_type: each for each in found if each.finished}
    assert [each.finished for each in found[-len(last) :]] == [True] * len(last)
    for medium, whole in last.items():
        told = [each for each in found if each.final_output_type == medium and not each.finished]
        assert told or medium == "image"
        assert {(each.stage_id, each.request_id, each.prompt) for each in told} <= {
            (whole.stage_id, "mine", whole.prompt)
        }
        outputs = [each.request_output.outputs[0] for each in told]
        assert {each.finish_reason for each in outputs} <= {None}
        if medium == "text":
            texts = [each.text for each in outputs]
            assert all(after.startswith(before) for before, after in pairwise(texts))
            assert whole.outputs[0].text.startswith(texts[-1]) and texts[-1]
            tokens = [each.token_ids for each in outputs]
            assert all(
                after[: len(before)] == before for before, after in pairwise([*tokens, whole.outputs[0].token_ids])
            )
            assert [len(before) < len(after) for before, after in pairwise([(), *tokens])] == [True] * len(tokens)
        elif medium == "audio":
            waves = [torch.cat(each.multimodal_output["audio"]) for each in outputs]
            assert all(len(after) > len(before) for before, after in pairwise(waves))
            end = whole.multimodal_output
            assert outputs[-1].multimodal_output["sr"] == end["sr"]
            torch.testing.assert_close(waves[-1], end["audio"][: len(waves[-1])], atol=1e-5, rtol=0)


def test_a_talker_says_no_more_frames_than_it_may(omni: Omni) -> None:
    short = [LIST[0], SamplingParams(temperature=0.9, max_tokens=1)]
    [_, whole], [_, cut] = omni.generate({"prompt": TALK}, LIST), omni.generate({"prompt": TALK}, short)
    assert cut.result.params.extra.voice_tokens == 1  # type: ignore[union-attr]
    samples, all_of_it = (each.multimodal_output["audio"].numel() for each in (cut, whole))
    assert samples < all_of_it


def test_what_is_set_that_is_nothing_is_refused(omni: Omni) -> None:
    sampling = SamplingParams(max_tokens=8)
    sampling.tensor_parallel_size = 1  # type: ignore[attr-defined]
    omni.generate({"prompt": TALK, "modalities": ["text"]}, sampling)
    for name, value, why in (("cfg_parallel_size", 2, "is not honoured here"), ("cfg_scale", 1, "has no 'cfg_scale'")):
        wrong = SamplingParams(max_tokens=8)
        setattr(wrong, name, value)
        with pytest.raises(RequestError, match=why):
            omni.generate({"prompt": TALK}, wrong)


def test_what_a_stage_cannot_be_told_is_refused(omni: Omni) -> None:
    for sampling, why in (
        ([SamplingParams(min_p=0.5)], r"min_p=0.5 is not honoured here; docs/compat.md"),
        ([LIST[0], SamplingParams(top_p=0.5)], r"top_p=0.5 of stage 1 cannot be chosen.*docs/compat.md"),
        ([LIST[0], SamplingParams(stop_token_ids=[9999])], r"stop_token_ids=\[9999\] of stage 1 cannot .* it ends at"),
        ([SamplingParams(stop_token_ids=[9999])], r"stop_token_ids=\[9999\] of stage 0 cannot be chosen"),
        (
            [LIST[0], OmniDiffusionSamplingParams()],
            r"OmniDiffusionSamplingParams mean nothing to stage 1, which chooses",
        ),
        ([{"temperature": 1}], r"dict is no sampling parameters; use SamplingParams"),
        ([5], r"int is no sampling parameters; use SamplingParams"),
        (5, r"int is no sampling parameters; use SamplingParams"),
        ([*LIST, LIST[0]], r"4 sampling parameters are more than the stages"),
    ):
        with pytest.raises(RequestError, match=why):
            omni.generate({"prompt": TALK}, sampling, use_tqdm=False)
    with pytest.raises(AttributeError, match=r"SamplingParams has no 'best_of' here; docs/compat.md lists"):
        _ = LIST[0].best_of
    with pytest.raises(TypeError, match=r"no 'max_new_tokens' here; did you mean 'max_tokens'\? docs/compat.md lists"):
        SamplingParams(max_new_tokens=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"Params takes no 'steps' here; did you mean 'num_inference_steps'\?"):
        OmniDiffusionSamplingParams(steps=3)  # type: ignore[call-arg]
    with pytest.raises(RequestError, match=r"1000000 stands for no token; this model has 0 to \d+"):
        omni.generate({"prompt_token_ids": [1, 1_000_000]}, LIST, use_tqdm=False)
    with pytest.raises(RequestError, match=r"marks for \{'audio': 1\}, and nothing came with it"):
        omni.generate({"prompt": "what is <|audio_pad|>?"}, LIST, use_tqdm=False)
    with pytest.raises(RequestError, match=r"use text and audio"):
        omni.generate({"prompt": TALK, "modalities": ["smell"]}, LIST, use_tqdm=False)


def test_tokens_and_marks_in_a_prompt_are_read_as_messages_are(omni: Omni) -> None:
    samples = np.sin(np.arange(8000) / 20).astype(np.float32)
    ours, tokenizer = omni._ours, omni._ours.engine.runner.pipeline.ctx.components["tokenizer"]
    content = [{"type": "image"}, {"type": "audio"}, {"type": "text", "text": "what is it?"}]
    text = tokenizer.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    media = {"multi_modal_data": {"image": photo(40, 24), "audio": (samples, 16_000)}, "modalities": ["text"]}
    came = {"images": [photo(40, 24)], "sounds": [recording_of(samples[None], 16_000)]}
    how = {"temperature": 0.0, "max_tokens": 8, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
    [expected] = ours.generate({"messages": [{"role": "user", "content": content}], **came}, how, progress=False)
    assert text.count("pad|>") == 2 and expected.error is None
    for prompt in ({"prompt": text}, {"prompt_token_ids": tokenizer(text).input_ids[0], "prompt": text}):
        [found] = omni.generate({**prompt, **media}, SamplingParams(temperature=0.0, max_tokens=8), use_tqdm=False)
        assert found.outputs[0].token_ids == expected.written[0].tokens
        assert found.result.prompt_tokens == expected.prompt_tokens


def test_sounds_come_as_samples_with_their_rate(omni: Omni) -> None:
    wave = np.sin(np.arange(8000) / 20).astype(np.float32)
    asked, params = omni._stages.asked({"prompt": "what is it?", "multi_modal_data": {"audio": (wave, 16_000)}}, LIST)
    assert (asked["sounds"][0].rate, params.seed) == (16_000, 7)


@pytest.mark.costly("stages in pools")
@pytest.mark.timeout(300)
def test_a_file_of_stages_gives_the_same(folder: Path, omni: Omni, tmp_path: Path) -> None:
    (tmp_path / "stages.yaml").write_text(STAGES)
    with Omni(
        model=str(folder), stage_configs_path=str(tmp_path / "stages.yaml"), dtype="float32", device="cpu"
    ) as made:
        found = made.generate({"prompt": TALK}, LIST, use_tqdm=False)
    expected = omni.generate({"prompt": TALK}, LIST, use_tqdm=False)
    assert found[0].outputs[0].text == expected[0].outputs[0].text
    assert torch.equal(found[1].multimodal_output["audio"], expected[1].multimodal_output["audio"])


def test_a_model_that_speaks_is_told_what_in_additional_information(tmp_path: Path) -> None:
    folder = SPEAKERS[0].build(tmp_path / "tiny")
    told = {"task_type": ["CustomVoice"], "text": ["hello"], "language": ["Auto"], "instruct": [""]}
    with Omni(model=str(folder), dtype="float32", device="cpu") as omni:
        asked = {"prompt_token_ids": [0] * 9, "additional_information": {**told, "max_new_tokens": [6]}}
        [audio] = omni.generate(asked, OmniDiffusionSamplingParams(seed=3), use_tqdm=False)
        with pytest.raises(RequestError, match=r"additional_information has \['pitch'\]"):
            omni.generate({"additional_information": {**told, "pitch": [1]}}, use_tqdm=False)
    with api.Omni(str(folder), dtype="float32", device="cpu") as ours:
        [expected] = ours.generate("hello", progress=False, seed=3, max_tokens=6)
    assert (audio.stage_id, audio.final_output_type) == (1, "audio")
    assert torch.equal(audio.multimodal_output["audio"], torch.from_numpy(expected.audios[0].samples[0]))
