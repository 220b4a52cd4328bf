"""Qwen2.5-Omni beside transformers: what it sees and hears, and what it answers to that, written and aloud."""

from __future__ import annotations

import functools
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.qwen2_5_omni.processing_qwen2_5_omni import Qwen2_5OmniProcessor

from omnimuse import Omni
from omnimuse.components.mel_flow import Flowing
from omnimuse.core.errors import RequestError
from omnimuse.core.output import Chunk, Event, Progress
from omnimuse.diffusion.three_eighths import time_of
from omnimuse.loader.voices import read_voices
from omnimuse.pipeline.painting import Painting, until
from tests.checkpoints import qwen25_omni
from tests.checkpoints.conversations import (
    ALOUD,
    FRAMES,
    GENERATION,
    PICTURES,
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
from tests.checkpoints.wishes import chord

pytestmark = pytest.mark.costly("what watches and speaks")

CPU = torch.device("cpu")
LONGEST = qwen25_omni.SHOWING["chunk_length"] * 16_000
ALONE: Mapping[str, Any] = {"temperature": 0, "modalities": ("text", "audio"), "voice": "chelsie"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen25_omni.build(tmp_path_factory.mktemp("omni") / "tiny")


@pytest.fixture(scope="module")
def omni(folder: Path) -> Iterator[Omni]:
    with in_company(folder) as made:
        yield made


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return qwen25_omni.opened(folder)


def prepared(came: Mapping[str, Any]) -> dict[str, Tensor]:
    """All that is shown."""
    found = pixels(came["images"], qwen25_omni.SHOWING) if "images" in came else {}
    if "sounds" in came:
        found |= spectra(came["sounds"], padding="max_length", max_length=LONGEST, truncation=True)
    return found | (moving(FRAMES, (112, 80)) if "videos" in came else {})


def counts(given: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """By kind, how many tokens stand for each that is shown."""
    grids = {kind: given.get(f"{kind}_grid_thw", torch.zeros(0, 3)) for kind in ("image", "video")}
    lengths = given.get("feature_attention_mask", torch.zeros(0, 1)).sum(-1).long().tolist()
    found = {kind: [int(grid.prod()) // 4 for grid in many] for kind, many in grids.items()}
    return {**found, "audio": [((length - 1) // 2 + 1 - 2) // 2 + 1 for length in lengths]}


def inputs(folder: Path, talk: Talk, came: Mapping[str, Any]) -> dict[str, Tensor]:
    """What the thinker of transformers takes."""
    given = prepared(came)
    return asked(folder, TEMPLATE, talk, given, counts(given))


def end_of(folder: Path) -> list[int]:
    ends: list[int] = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    return ends


def answer(folder: Path, reference: Any, given: Mapping[str, Tensor], choices: Mapping[str, Any]) -> list[int]:
    """The tokens of transformers."""
    told = {**GENERATION, "eos_token_id": end_of(folder), **theirs(choices)}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(7)
        found = reference.thinker.generate(**given, **told)
    return [int(token) for token in found[0, given["input_ids"].shape[1] :]]


def spoken(
    folder: Path, given: Mapping[str, Tensor], seed: int, tokens: int, codes: int = 4096
) -> tuple[list[int], Tensor]:
    """The tokens and the waveform of transformers; the likeliest tokens, and as many `codes` at most, drawn by chance
    from `seed`.

    It forgets the mask of the talker where nothing is padded, and with it the marks that begin a speech and the places
    of what is shown: here it is told. Its noise is drawn from `seed` again, as ours is.
    """
    reference = qwen25_omni.opened(folder)
    talk, paint = reference.talker.forward, reference.token2wav.forward

    @functools.wraps(talk)
    def talking(*args: Any, attention_mask: Any = None, **how: Any) -> Any:
        read = how["inputs_embeds"] if how.get("input_ids") is None else how["input_ids"]
        mask = torch.ones(1, how["past_key_values"].get_seq_length() + read.shape[1], dtype=torch.int64)
        return talk(*args, attention_mask=mask, **how)

    def painting(code: Tensor, **how: Any) -> Tensor:
        torch.manual_seed(seed)
        return paint(code, **how)

    reference.talker.forward, reference.token2wav.forward = talking, painting
    marks = [reference.talker.codec_pad_token, reference.talker.codec_eos_token]
    how: dict[str, Any] = {"thinker_do_sample": False, "thinker_eos_token_id": end_of(folder)}
    how |= {"thinker_max_new_tokens": tokens, "talker_max_new_tokens": codes, "talker_eos_token_id": marks}
    seen = {name: f"thinker_{name}" for name in ("pixel_values", "pixel_values_videos")}  # its talker looks at nothing
    given = {seen.get(name, name): value for name, value in given.items()}
    with torch.random.fork_rng(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it does on purpose
        torch.manual_seed(seed)
        ids, wave = reference.generate(**given, speaker="Chelsie", **how)
    return [int(token) for token in ids[0, given["input_ids"].shape[1] :]], wave


def test_pictures_and_videos_are_seen_as_transformers_sees_them(omni: Omni, reference: Any) -> None:
    vision = omni.engine.runner.pipeline.ctx.network("vision")
    given = pixels(PICTURES, qwen25_omni.SHOWING) | moving(FRAMES, (112, 80))
    with torch.no_grad():
        for patches, grids, look in (
            (given["pixel_values"], given["image_grid_thw"], reference.thinker.get_image_features),
            (given["pixel_values_videos"], given["video_grid_thw"], reference.thinker.get_video_features),
        ):
            expected = look(patches, grids).pooler_output
            parts = patches.split(grids.prod(-1).tolist())
            for own, grid, theirs in zip(parts, grids.tolist(), expected, strict=True):
                torch.testing.assert_close(vision(own, tuple(grid)).shown, theirs, atol=1e-5, rtol=1e-5)


def test_sounds_are_heard_as_transformers_hears_them(omni: Omni, reference: Any) -> None:
    given = spectra(SOUNDS, padding="max_length", max_length=LONGEST, truncation=True)
    lengths = given["feature_attention_mask"].sum(-1).tolist()
    hearing = omni.engine.runner.pipeline.ctx.network("hearing")
    with torch.no_grad():
        expected = reference.thinker.get_audio_features(given["input_features"], given["feature_attention_mask"])
        found = [hearing(x[:, :n]) for x, n in zip(given["input_features"], lengths, strict=True)]
    torch.testing.assert_close(torch.cat(found), expected.last_hidden_state, atol=1e-5, rtol=1e-5)


@pytest.mark.shows(
    "pictures shown", "videos shown", "sounds heard", "company", families=["Qwen2_5OmniForConditionalGeneration"]
)
def test_what_is_shown_is_answered_in_company_as_transformers_does_alone(
    folder: Path, omni: Omni, reference: Any
) -> None:
    prompts = [{"messages": talk, **came} for talk, came, _ in TALKS]
    found = omni.generate(prompts, [{**choices, "seed": 7} for _, _, choices in TALKS], progress=False)
    for result, (talk, came, choices) in zip(found, TALKS, strict=True):
        assert result.error is None, result.error
        given = inputs(folder, talk, came)
        assert result.prompt_tokens == given["input_ids"].shape[1]
        assert list(result.written[0].tokens) == answer(folder, reference, given, choices)


def test_answers_are_spoken_in_company_as_transformers_speaks_them(folder: Path, omni: Omni) -> None:
    pieces: dict[str, list[Chunk]] = {}

    def listen(event: Event) -> None:
        if isinstance(event, Chunk) and event.medium == "audio":
            pieces.setdefault(event.request_id, []).append(event)

    prompts = [{"messages": talk, **came} for talk, came, _ in ALOUD]
    params = [{**ALONE, "max_tokens": tokens, "seed": 3 + place} for place, (_, _, tokens) in enumerate(ALOUD)]
    found = omni.generate(prompts, params, progress=listen, chunks=True)
    for place, (result, (talk, came, tokens)) in enumerate(zip(found, ALOUD, strict=True)):
        assert result.error is None, result.error
        ids, wave = spoken(folder, inputs(folder, talk, came), 3 + place, tokens)
        assert list(result.written[0].tokens) == ids
        sound, told = heard(result), pieces[result.request_id]
        assert len(sound) == len(wave)
        assert float((sound - wave).norm() / wave.norm()) < 1e-5
        assert torch.equal(torch.cat([torch.from_numpy(piece.data)[0] for piece in told]), sound)


def test_videos_are_heard_while_they_are_watched_as_transformers_does(folder: Path, omni: Omni, reference: Any) -> None:
    came = {"videos": [VIDEO], "sounds": [SOUNDS[1]], "images": PICTURES[:1]}
    given, talk = prepared(came), [shown("image", "video", text="two"), {"role": "assistant", "content": "a star"}]
    talk.append({"role": "user", "content": "what"})
    many = counts(given)
    told = {"video_grid_thw": given["video_grid_thw"].numpy(), "video_second_per_grid": [1.0]}
    names = ("video_token", "audio_token", "audio_bos_token", "audio_eos_token")
    marks = ("<|video_pad|>", "<|audio_pad|>", "<|audio_start|>", "<|audio_end|>")
    published: Any = Qwen2_5OmniProcessor
    processor = SimpleNamespace(**dict(zip(names, marks, strict=True)), video_processor=SimpleNamespace(merge_size=2))
    processor.get_chunked_index = partial(published.get_chunked_index, processor)
    how = {"position_id_per_seconds": 25, "seconds_per_chunk": 2.0}
    film = published.replace_video_with_audio_token(processor, told, 0, {"num_audio_tokens": many["audio"]}, 0, **how)
    assert len(re.findall("(?:<.video_pad.>)+(?:<.audio_pad.>)+", film)) > 1
    template = TEMPLATE.replace("<|video_pad|>", film)
    given = asked(folder, template, talk, given, {"image": many["image"]})
    given["use_audio_in_video"] = True  # type: ignore[assignment]
    messages = [shown("image", "video", "audio", text="two"), *talk[1:]]
    ask = {"messages": messages, **came}
    choices = {"temperature": 0, "max_tokens": 8}
    [text] = omni.generate([ask], {**choices, "use_audio_in_video": True}, progress=False)
    assert list(text.written[0].tokens) == answer(folder, reference, given, choices)
    raw = omni.engine.runner.pipeline.ctx.components["tokenizer"].apply_chat_template(talk, add_generation_prompt=True)
    [marked] = omni.generate([{"prompt": raw, **came}], {**choices, "use_audio_in_video": True}, progress=False)
    assert marked.written[0].tokens == text.written[0].tokens, "a video's mark stands for its sound, too"
    [result] = omni.generate([ask], {**ALONE, "max_tokens": 8, "seed": 4, "use_audio_in_video": True}, progress=False)
    ids, wave = spoken(folder, given, 4, 8)
    assert list(result.written[0].tokens) == ids
    assert float((heard(result) - wave).norm() / wave.norm()) < 1e-5
    with pytest.raises(RequestError, match="a video has no sound in its file; show one right"):
        omni.generate({"messages": [shown("video")], "videos": [VIDEO]}, {"use_audio_in_video": True}, progress=False)


def test_a_long_answer_is_painted_in_passes_as_transformers_paints_the_whole(omni: Omni, reference: Any) -> None:
    codes = torch.randint(0, qwen25_omni.CODES, (331,), generator=torch.Generator().manual_seed(0))
    voice, flow = reference.speaker_map["Ethan"], omni.engine.runner.pipeline.ctx.network("flow")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(2)
        paint = reference.token2wav.code2wav_dit_model.sample
        expected = paint(voice["cond"], voice["ref_mel"], codes[None])[0].T  # [T, M]
        told = flow.told(codes, voice["cond"][0], voice["ref_mel"][0].T)
        noise = torch.randn(len(expected), 16, generator=torch.Generator().manual_seed(2))
        painting, found, ends = Painting.of(flow.config, CPU), list[Tensor](), list[int]()
        while not painting.whole:
            known = painting.samples[0].end
            end = min(until(flow.config, known), len(noise))
            painting.samples[0].add(noise[known:end])
            painting.whole = end == len(noise)
            for index in range(painting.count):
                first, last, _, _ = painting.span(index)
                sample = painting.samples[index].between(first, last)
                time = time_of(painting.times, index)
                slopes = flow([Flowing(sample, each[first:last], time) for each in told])
                painting.take(index, slopes[0] + (slopes[0] - slopes[1]) * 0.5)
            found.append(painting.samples[-1].frames)
            painting.samples[-1].forget(painting.samples[-1].end)
            ends.append(len(found[-1]))
    assert len(ends) > 3
    assert ends[0] == 24 * 6, "the first pass finishes what others do, and begins with more"
    assert float((torch.cat(found) - expected).norm() / expected.norm()) < 1e-5
    assert all(len(kept.frames) < 60 * 6 for kept in (*painting.samples, *painting.slopes)), (
        "what is remembered does not grow"
    )


def test_a_long_answer_is_heard_before_it_is_said_to_its_end(tmp_path: Path) -> None:
    folder = qwen25_omni.build(tmp_path / "long", places=330)
    talk, came, tokens = ALOUD[0]
    events: list[Event] = []
    with Omni(str(folder), dtype="float32", device="cpu") as made:
        how = {**ALONE, "max_tokens": tokens, "seed": 5}
        [result] = made.generate([{"messages": talk}], how, progress=events.append, chunks=True)
    kinds = [event.medium if isinstance(event, Chunk) else event.stage for event in _told(events)]
    assert kinds.index("audio") < len(kinds) - 1 - kinds[::-1].index("talk"), "it is heard meanwhile"
    given = inputs(folder, talk, came)
    _, wave = spoken(folder, given, 5, tokens, codes=330 - given["input_ids"].shape[1] - 2)
    sound = heard(result)
    assert len(sound) == len(wave)
    assert float((sound - wave).norm() / wave.norm()) < 1e-5


def _told(events: Sequence[Event]) -> list[Chunk | Progress]:
    return [event for event in events if isinstance(event, Chunk | Progress)]


def test_samples_made_in_pieces_are_those_of_the_whole(omni: Omni, reference: Any) -> None:
    mel = torch.randn(16, 230, generator=torch.Generator().manual_seed(0))
    vocoder = omni.engine.runner.pipeline.ctx.network("vocoder")
    assert vocoder.config.margin < 60
    with torch.no_grad():
        expected = reference.token2wav.code2wav_bigvgan_model(mel[None])
        places = [0, 1, 40, 100, 229, 230]
        found = torch.cat([vocoder(mel, *ends) for ends in pairwise(places)])
    assert found.shape == expected.shape
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_a_text_that_ends_by_itself_is_spoken_to_its_end(folder: Path, tmp_path: Path) -> None:
    talk, came, tokens = ALOUD[0]
    ended = qwen25_omni.build(tmp_path / "ending")
    [first] = _answers(ended, talk, {**ALONE, "max_tokens": tokens, "seed": 5})
    ends = first.written[0].tokens[5]
    (ended / "generation_config.json").write_text(json.dumps({"eos_token_id": [ends]}))
    [result] = _answers(ended, talk, {**ALONE, "max_tokens": tokens, "seed": 5})
    ids, wave = spoken(ended, inputs(ended, talk, came), 5, tokens)
    assert result.written[0].reason == "stop"
    assert list(result.written[0].tokens) == ids
    assert float((heard(result) - wave).norm() / wave.norm()) < 1e-5


def _answers(folder: Path, talk: Talk, how: Mapping[str, Any]) -> Sequence[Any]:
    with Omni(str(folder), dtype="float32", device="cpu") as made:
        return made.generate([{"messages": talk}], dict(how), progress=False)


def test_one_word_is_written_and_not_spoken_and_text_alone_has_no_sound(omni: Omni) -> None:
    [one] = omni.generate([ALOUD[0][0]], {"max_tokens": 1, "modalities": ("text", "audio")}, progress=False)
    assert heard(one).numel() == 0
    [text] = omni.generate([ALOUD[0][0]], {"max_tokens": 3}, progress=False)
    assert [part.medium for part in text.parts[0]] == ["text"]


@pytest.mark.parametrize(
    ("prompt", "choices", "says"),
    [
        (ALOUD[0][0], {"modalities": ("text", "audio"), "voice": "nobody"}, "is not known to this checkpoint"),
        ({"messages": [shown("audio")], "sounds": [chord(16_000, 9.0, 1)]}, {}, "at most 8 s can be heard: cut it"),
        ({"messages": [shown(text="<|image_pad|>")]}, {}, "stand for what is shown; take it out"),
    ],
)
def test_what_cannot_be_is_refused(omni: Omni, prompt: Any, choices: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        omni.generate(prompt, choices, progress=False)


def test_a_checkpoint_without_a_talker_writes_and_says_that_it_cannot_speak(tmp_path: Path) -> None:
    folder = qwen25_omni.build(tmp_path / "silent", speaks=False)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["Qwen2_5OmniModel"]  # as the class was called when the first checkpoints were published
    (folder / "config.json").write_text(json.dumps(config))
    with Omni(str(folder), dtype="float32", device="cpu") as silent:
        assert len(silent.generate([ALOUD[0][0]], {"max_tokens": 3}, progress=False)[0].written[0].tokens) == 3
        with pytest.raises(RequestError, match="has no talker, and answers in text alone"):
            silent.generate(ALOUD[0][0], {"modalities": ("text", "audio")}, progress=False)


def test_voices_are_those_that_transformers_reads(folder: Path, reference: Any) -> None:
    found, expected = read_voices(folder / "spk_dict.pt"), reference.speaker_map
    assert found.keys() == expected.keys()
    for name, voice in expected.items():
        assert found[name]["bos_token"] == voice["bos_token"]
        for part in ("cond", "ref_mel"):
            assert torch.equal(torch.tensor(found[name][part]), voice[part])
