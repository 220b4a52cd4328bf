"""Qwen3-Omni beside transformers: what it sees and hears, and what it answers to that."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import Qwen3OmniMoeForConditionalGeneration
from transformers.models.qwen3_omni_moe.processing_qwen3_omni_moe import Qwen3OmniMoeProcessor

from omnimuse import Omni
from omnimuse.components.speech_codec import Past
from omnimuse.core.errors import RequestError
from omnimuse.core.output import Chunk, Event
from omnimuse.loader.components import quiet
from omnimuse.pipeline.conversing import SECOND
from omnimuse.pipeline.generate import CHUNK
from tests.checkpoints import qwen3_omni
from tests.checkpoints.conversations import (
    ALOUD,
    FRAMES,
    GENERATION,
    PICTURES,
    PREPARING,
    SOUNDS,
    TALKS,
    TEMPLATE,
    VIDEO,
    Talk,
    asked,
    heard,
    in_company,
    moving,
    pixels,
    shown,
    spectra,
)
from tests.checkpoints.qwen3 import theirs
from tests.checkpoints.wishes import chord, photo

pytestmark = pytest.mark.costly("what hears and speaks")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen3_omni.build(tmp_path_factory.mktemp("omni") / "tiny")


@pytest.fixture(scope="module")
def omni(folder: Path) -> Iterator[Omni]:
    with in_company(folder) as made:
        yield made


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    with quiet("transformers"):
        found: Any = Qwen3OmniMoeForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    # Places of sounds beside pictures need this, and the talker is not told it.
    found.talker.config.audio_config = found.config.thinker_config.audio_config
    return found


def prepared(came: Mapping[str, Any]) -> dict[str, Tensor]:
    """All that is shown."""
    found = pixels(came["images"], PREPARING) if "images" in came else {}
    found |= spectra(came["sounds"]) if "sounds" in came else {}
    return found | (moving(FRAMES, (24, 16)) if "videos" in came else {})


def counts(reference: Any, given: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """By kind, how many tokens stand for each that is shown."""
    found: dict[str, list[int]] = {}
    for kind in ("image", "video"):
        grids = given.get(f"{kind}_grid_thw", torch.zeros(0, 3))
        found[kind] = [int(grid.prod()) // 4 for grid in grids]
    lengths = given.get("feature_attention_mask", torch.zeros(0, 1)).sum(-1).long()
    found["audio"] = [
        int(reference.thinker.model.audio_tower(torch.zeros(128, n), n[None])[0].shape[0]) for n in lengths
    ]
    return found


def inputs(folder: Path, reference: Any, talk: Talk, came: Mapping[str, Any]) -> dict[str, Tensor]:
    """What the thinker of transformers takes."""
    given = prepared(came)
    return asked(folder, TEMPLATE, talk, given, counts(reference, given))


def answer(reference: Any, given: Mapping[str, Tensor], seed: int, choices: Mapping[str, Any]) -> list[int]:
    """The tokens of transformers."""
    told = {**GENERATION, "eos_token_id": reference.config.im_end_token_id, **theirs(choices)}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        found = reference.thinker.generate(**given, **told)
    return [int(token) for token in found[0, given["input_ids"].shape[1] :]]


def test_pictures_are_seen_as_transformers_sees_them(omni: Omni, reference: Any) -> None:
    given = pixels(PICTURES, PREPARING)
    with torch.no_grad():
        expected = reference.thinker.get_image_features(given["pixel_values"], given["image_grid_thw"])
        vision = omni.engine.runner.pipeline.ctx.network("vision")
        parts = given["pixel_values"].split(given["image_grid_thw"].prod(-1).tolist())
        for number, (patches, grid) in enumerate(zip(parts, given["image_grid_thw"].tolist(), strict=True)):
            found = vision(patches, tuple(grid))
            torch.testing.assert_close(found.shown, expected.pooler_output[number], atol=1e-5, rtol=1e-5)
            for layer, deep in enumerate(expected.deepstack_features):
                torch.testing.assert_close(found.deep[layer], deep[number], atol=1e-5, rtol=1e-5)


def test_sounds_are_heard_as_transformers_hears_them(omni: Omni, reference: Any) -> None:
    given = spectra(SOUNDS)
    lengths = given["feature_attention_mask"].sum(-1).tolist()
    hearing = omni.engine.runner.pipeline.ctx.network("hearing")
    with torch.no_grad():
        expected = reference.thinker.get_audio_features(given["input_features"], given["feature_attention_mask"])
        found = [hearing(x[:, :n]) for x, n in zip(given["input_features"], lengths, strict=True)]
    torch.testing.assert_close(torch.cat(found), expected.last_hidden_state, atol=1e-5, rtol=1e-5)


@pytest.mark.shows(
    "pictures shown", "videos shown", "sounds heard", "company", families=["Qwen3OmniMoeForConditionalGeneration"]
)
def test_what_is_shown_is_answered_in_company_as_transformers_does_alone(
    folder: Path, omni: Omni, reference: Any
) -> None:
    prompts = [{"messages": talk, **came} for talk, came, _ in TALKS]
    found = omni.generate(prompts, [{**choices, "seed": 7} for _, _, choices in TALKS], progress=False)
    for result, (talk, came, choices) in zip(found, TALKS, strict=True):
        assert result.error is None, result.error
        given = inputs(folder, reference, talk, came)
        assert result.prompt_tokens == given["input_ids"].shape[1]
        [written] = result.written
        assert list(written.tokens) == answer(reference, given, 7, choices)
    again = omni.generate(prompts, [{**choices, "seed": 7} for _, _, choices in TALKS], progress=False)
    assert [each.text for each in again] == [each.text for each in found], "what was read before is remembered"
    assert again[2].written[0].reused > 0


def spoken(
    reference: Any, given: Mapping[str, Tensor], seed: int, tokens: int, end: int
) -> tuple[list[int], Tensor] | None:
    """The tokens and the waveform of transformers; the likeliest tokens, codes drawn by chance from `seed`. None where
    it says nothing.
    """
    with torch.random.fork_rng(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it does on purpose
        torch.manual_seed(seed)
        how = {"thinker_do_sample": False, "thinker_max_new_tokens": tokens, "thinker_eos_token_id": end}
        try:
            ids, wave = reference.generate(**given, return_audio=True, speaker="Chelsie", **how)
        except RuntimeError as error:  # it has no words for a sound without a frame
            if "non-empty TensorList" not in str(error):
                raise
            return None
    return [int(token) for token in ids[0, given["input_ids"].shape[1] :]], wave[0, 0]


def test_answers_are_spoken_in_company_as_transformers_speaks_them(folder: Path, omni: Omni, reference: Any) -> None:
    pieces: dict[str, list[Chunk]] = {}

    def listen(event: Event) -> None:
        if isinstance(event, Chunk) and event.medium == "audio":
            pieces.setdefault(event.request_id, []).append(event)

    prompts = [{"messages": talk, **came} for talk, came, _ in ALOUD]
    how = {"temperature": 0, "modalities": ("text", "audio"), "voice": "chelsie"}
    params = [{**how, "max_tokens": tokens, "seed": 3 + place} for place, (_, _, tokens) in enumerate(ALOUD)]
    found = omni.generate(prompts, params, progress=listen, chunks=True)
    for place, (result, (talk, came, tokens)) in enumerate(zip(found, ALOUD, strict=True)):
        assert result.error is None, result.error
        given = inputs(folder, reference, talk, came)
        expected = spoken(reference, given, 3 + place, tokens, reference.config.im_end_token_id)
        [written], sound = result.written, heard(result)
        if expected is None:
            assert not len(sound)
            continue
        ids, wave = expected
        assert list(written.tokens) == ids
        assert len(sound) == len(wave)
        assert float((sound - wave).norm() / wave.norm()) < 1e-5
        told = pieces[result.request_id]
        assert torch.equal(torch.cat([torch.from_numpy(piece.data)[0] for piece in told]), sound)
        lengths = [piece.data.shape[1] for piece in told]
        assert [piece.start for piece in told] == [sum(lengths[:at]) for at in range(len(told))]
    assert any(len(each) > 1 for each in pieces.values()), "it comes in pieces"


@pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_of_the_talker_and_its_predictor_is_worn_as_peft_wears_it(
    folder: Path, omni: Omni, tmp_path: Path
) -> None:
    with quiet("transformers"):
        wearing: Any = Qwen3OmniMoeForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    wearing.talker.config.audio_config = wearing.config.thinker_config.audio_config
    found = re.compile(r"talker\.(code_predictor\.)?model\.layers\.\d+\.self_attn\.[qkvo]_proj")
    layers = [name for name, _ in wearing.named_modules() if found.fullmatch(name)]
    torch.manual_seed(1)
    how = LoraConfig(r=4, lora_alpha=8, target_modules=layers, init_lora_weights=False)
    get_peft_model(wearing, how).save_pretrained(tmp_path)  # which puts it into the model, too
    said = []
    for place, (talk, came, tokens) in enumerate(ALOUD):
        aloud = {"temperature": 0, "modalities": ("text", "audio"), "voice": "chelsie", "max_tokens": tokens}
        asked_with = [{**aloud, "seed": 3 + place, "loras": loras} for loras in ([str(tmp_path)], [])]
        worn, bare = omni.generate([{"messages": talk, **came}] * 2, asked_with, progress=False)
        assert worn.error is None, worn.error
        given = inputs(folder, wearing, talk, came)
        expected = spoken(wearing, given, 3 + place, tokens, wearing.config.im_end_token_id)
        assert list(worn.written[0].tokens) == list(bare.written[0].tokens), "the thinker wears nothing"
        if expected is None:
            assert not len(heard(worn))
            continue
        ids, wave = expected
        assert list(worn.written[0].tokens) == ids
        assert len(heard(worn)) == len(wave)
        assert float((heard(worn) - wave).norm() / wave.norm()) < 1e-5
        said.append(len(heard(bare)) != len(wave) or not torch.allclose(heard(bare), wave, atol=1e-3))
    assert any(said), "it is heard"


def test_videos_are_heard_while_they_are_watched_as_transformers_does(folder: Path, omni: Omni, reference: Any) -> None:
    came = {"videos": [VIDEO], "sounds": [SOUNDS[1]], "images": PICTURES[:1]}
    media, talk = prepared(came), [shown("image", "video", text="two"), {"role": "assistant", "content": "a star"}]
    talk.append({"role": "user", "content": "what"})
    many, grids = counts(reference, media), media["video_grid_thw"].numpy()
    names = ("video_token", "audio_token", "audio_bos_token", "audio_eos_token")
    marks = ("<|video_pad|>", "<|audio_pad|>", "<|audio_start|>", "<|audio_end|>")
    published: Any = Qwen3OmniMoeProcessor
    processor = SimpleNamespace(**dict(zip(names, marks, strict=True)), video_processor=SimpleNamespace(merge_size=2))
    told, how = {"video_grid_thw": grids, "video_second_per_grid": [1.0]}, {"position_id_per_seconds": SECOND}
    film = published.replace_video_with_audio_token(processor, told, 0, {"num_audio_tokens": many["audio"]}, 0, **how)
    assert len(re.findall("(?:<.video_pad.>)+(?:<.audio_pad.>)+", film)) > 1
    template = TEMPLATE.replace("<|video_pad|>", film)
    given: dict[str, Any] = asked(folder, template, talk, media, {"image": many["image"]})
    given["use_audio_in_video"] = True
    ask = {"messages": [shown("image", "video", "audio", text="two"), *talk[1:]], **came}
    choices = {"temperature": 0, "max_tokens": 8, "use_audio_in_video": True}
    [text] = omni.generate([ask], choices, progress=False)
    assert text.prompt_tokens == given["input_ids"].shape[1]
    assert list(text.written[0].tokens) == answer(reference, given, 0, {"temperature": 0, "max_tokens": 8})
    aloud = {**choices, "modalities": ("text", "audio"), "voice": "chelsie", "seed": 4}
    [result] = omni.generate([ask], aloud, progress=False)
    given["talker_use_audio_in_video"] = True  # which it tells its thinker alone
    expected = spoken(reference, given, 4, 8, reference.config.im_end_token_id)
    assert expected is not None
    assert list(result.written[0].tokens) == expected[0]
    assert float((heard(result) - expected[1]).norm() / expected[1].norm()) < 1e-5
    with pytest.raises(RequestError, match="a video has no sound in its file; show one right"):
        omni.generate({"messages": [shown("video")], "videos": [VIDEO]}, {"use_audio_in_video": True}, progress=False)


def test_a_text_that_ends_by_itself_is_spoken_to_its_end(
    folder: Path, omni: Omni, reference: Any, tmp_path: Path
) -> None:
    talk, came, tokens = ALOUD[0]
    how = {"temperature": 0, "max_tokens": tokens, "seed": 5}
    [whole] = omni.generate([{"messages": talk}], how, progress=False)
    end = whole.written[0].tokens[5]
    copytree(folder, tmp_path / "ending")
    (tmp_path / "ending" / "generation_config.json").write_text(json.dumps({"eos_token_id": [end]}))
    with Omni(str(tmp_path / "ending"), dtype="float32", device="cpu") as ending:
        aloud = {**how, "modalities": ("text", "audio"), "voice": "chelsie"}
        [result] = ending.generate([{"messages": talk}], aloud, progress=False)
    expected = spoken(reference, inputs(folder, reference, talk, came), 5, tokens, end)
    assert expected is not None
    ids, wave = expected
    assert result.written[0].reason == "stop"
    assert list(result.written[0].tokens) == ids
    assert float((heard(result) - wave).norm() / wave.norm()) < 1e-5


def test_a_long_sound_is_the_whole_in_pieces_and_loses_nothing_between_them(omni: Omni, reference: Any) -> None:
    codes = torch.randint(0, qwen3_omni.CODES, (4, 330), generator=torch.Generator().manual_seed(0))
    decoder = omni.engine.runner.pipeline.ctx.network("code2wav")
    past = Past()
    with torch.no_grad():
        expected = reference.code2wav(codes[None])[0, 0]
        found = torch.cat([decoder(piece, past) for piece in codes.split([4, *[25] * 13, 1], dim=1)])
        assert reference.code2wav.chunked_decode(codes[None]).shape[-1] < len(expected), "as the reference does"
    assert found.shape == expected.shape
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_who_wants_text_alone_gets_no_sound(omni: Omni) -> None:
    [result] = omni.generate([ALOUD[0][0]], {"max_tokens": 3}, progress=False)
    assert [part.medium for part in result.parts[0]] == ["text"]


def test_a_checkpoint_without_a_talker_writes_and_says_that_it_cannot_speak(tmp_path: Path) -> None:
    folder = qwen3_omni.build(tmp_path / "silent", speaks=False)
    with Omni(str(folder), dtype="float32", device="cpu") as silent:
        [result] = silent.generate([ALOUD[0][0]], {"max_tokens": 3}, progress=False)
        assert len(result.written[0].tokens) == 3
        with pytest.raises(RequestError, match="has no talker, and answers in text alone"):
            silent.generate(ALOUD[0][0], {"modalities": ("text", "audio")}, progress=False)


def test_one_word_is_written_and_not_spoken(omni: Omni) -> None:
    [result] = omni.generate([ALOUD[0][0]], {"max_tokens": 1, "modalities": ("text", "audio")}, progress=False)
    assert heard(result).numel() == 0


def test_another_picture_is_not_taken_for_the_one_before(omni: Omni) -> None:
    talk = [{"role": "system", "content": "one two three " * 60}, shown("image")]
    asks = [{"messages": talk, "images": [photo(40, 24).rotate(angle)]} for angle in (0, 180, 0)]
    found = [omni.generate(ask, temperature=0, max_tokens=3, progress=False)[0].written[0].reused for ask in asks]
    assert found[:2] == [0, 0]
    assert found[2] >= CHUNK, "that one was seen before"


def test_parts_of_messages_have_what_they_show_in_them(omni: Omni) -> None:
    choices = {"temperature": 0, "max_tokens": 8}
    [apart] = omni.generate({"messages": [shown("image")], "images": PICTURES[:1]}, choices, progress=False)
    inside = {
        "role": "user",
        "content": [{"type": "image", "image": PICTURES[0]}, {"type": "text", "text": "what is this"}],
    }
    [beside] = omni.generate([inside], choices, progress=False)
    [plain] = omni.generate({"prompt": "what is this", "images": PICTURES[:1]}, choices, progress=False)
    assert apart.text == beside.text == plain.text


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ({"messages": [shown("image")]}, "the messages show 1 of images, and 0 came with them"),
        ({"messages": [shown("image")], "images": PICTURES}, "the messages show 1 of images, and 2 came with them"),
        ({"messages": [shown(text="<|image_pad|>")]}, "stand for what is shown; take it out"),
        ({"prompt": "a", "sounds": [chord(16_000, 0.01, 1)]}, "at least 0.025 s can be heard"),
        ({"messages": [shown("smell")]}, "has a part that is no"),
    ],
)
def test_what_cannot_be_shown_is_refused(omni: Omni, prompt: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        omni.generate(prompt, progress=False)


@pytest.mark.parametrize(
    ("prompt", "choices", "says"),
    [
        ("a", {"modalities": ("text", "audio")}, "a prompt that goes on is not spoken; give messages"),
        (ALOUD[0][0], {"modalities": ("audio",)}, r'use \["text"\] or \["text", "audio"\]'),
        (ALOUD[0][0], {"voice": "ethan"}, "no sound is wanted"),
        (ALOUD[0][0], {"modalities": ("text", "audio"), "voice": "nobody"}, "is not known to this checkpoint"),
    ],
)
def test_what_cannot_be_spoken_is_refused(omni: Omni, prompt: Any, choices: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        omni.generate(prompt, choices, progress=False)
