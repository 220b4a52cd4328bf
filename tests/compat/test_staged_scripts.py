"""Scripts of the documents for models of several stages, as people have them: they make what the engine makes."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from omnimuse import api
from omnimuse.compat.contract.names import UnknownAttributeError
from omnimuse.compat.vllm.assets.video import video_to_ndarrays
from omnimuse.compat.vllm.multimodal.image import convert_image_mode
from omnimuse.compat.vllm_omni import Omni
from omnimuse.core.errors import ConfigError, RequestError
from omnimuse.media.video import Video, save_video
from tests.checkpoints import qwen3, qwen3_tts, talk_and_draw
from tests.checkpoints.wishes import film, photo
from tests.once import Once

STAGED = ("multimodal_chat", "text_chat", "unified", "prior_and_picture", "speech")
SCRIPTS = Path(__file__).parent / "scripts"
Run = Callable[..., list[str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a script with some words, in a folder of its own on a CPU in float32; what it prints."""
    monkeypatch.chdir(tmp_path)

    def config_of(model: str, options: Any) -> Any:
        return whole(model, {**options, "dtype": "float32", "device": "cpu"})

    from omnimuse.compat.vllm_omni.entrypoints import async_omni, omni, options

    whole = options.config_of
    for module in (omni, async_omni):
        monkeypatch.setattr(module, "config_of", config_of)

    def called(script: str, *words: object) -> list[str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
        runpy.run_path(str(SCRIPTS / f"{script}.py"), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return called


def ours(folder: Path) -> api.Omni:
    return api.Omni(str(folder), dtype="float32", device="cpu")


def same(path: Path, image: Image.Image) -> bool:
    with Image.open(path) as found:
        return np.array_equal(np.asarray(found), np.asarray(image))


# -- what thinks and talks -------------------------------------------------------------------------------------------

TALKING = {"qwen2_5_omni": "Qwen2_5OmniForConditionalGeneration", "qwen3_omni": "Qwen3OmniMoeForConditionalGeneration"}


@pytest.fixture(scope="module", params=TALKING)
def talking(request: pytest.FixtureRequest, once: Once) -> tuple[str, Path]:
    from tests.checkpoints.families import ANSWERERS

    [build] = [each.build for each in ANSWERERS if each.name == TALKING[request.param]]
    return request.param, once.folder(TALKING[request.param], build)


def ends(kind: str, folder: Path) -> Sequence[int]:
    """The code with which the talker of a tiny checkpoint ends, as the published one has 8294, or 2150."""
    told = json.loads((folder / "config.json").read_text())["talker_config"]
    return [told["codec_eos_token_id" if kind == "qwen3_omni" else "tts_codec_end_token_id"]]


@pytest.mark.costly(turns=3)
@pytest.mark.parametrize("query", ["text", "use_image", "use_audio", "use_video"])
def test_a_model_that_talks_answers_the_scripts_queries(
    run: Run, talking: tuple[str, Path], tmp_path: Path, query: str
) -> None:
    kind, folder = talking
    photo(40, 24).save(tmp_path / "seen.png")
    soundfile.write(tmp_path / "heard.wav", np.sin(np.arange(8000) / 20).astype(np.float32), 16_000)
    words = ("--model", folder, "--kind", kind, "--query-type", query, "--image-path", "seen.png", "--max_tokens=8")
    save_video(Video(film(56, 56, 8), 4.0), tmp_path / "watched.mp4", {})
    given = ("--audio-path", "heard.wav", "--video-path", "watched.mp4", "--num-frames", 4)
    told = run("multimodal_chat", *words, *given, "--talker-stop", *ends(kind, folder))
    assert told[0] == "Text of stage 0 saved" and told[1].startswith("Sound of stage 2 saved: ")
    [text], [sound] = (list((tmp_path / "output_audio").glob(f"*.{kind}")) for kind in ("txt", "wav"))
    assert "Hello, who are you?" in text.read_text() and sound.stat().st_size >= 44


@pytest.mark.parametrize(("query", "what"), [("image", "picture"), ("audio", "sound"), ("video", "video")])
def test_a_sample_that_lies_elsewhere_is_refused_with_what_to_give(
    run: Run, talking: tuple[str, Path], query: str, what: str
) -> None:
    kind, folder = talking
    words = ("--model", folder, "--kind", kind, "--query-type", f"use_{query}")
    with pytest.raises(UnknownAttributeError, match=rf"Asset\('.*is not asked: give the script a {what} of your own"):
        run("multimodal_chat", *words)


def test_frames_are_taken_evenly_from_the_first_to_the_last(tmp_path: Path) -> None:
    shades = [Image.new("RGB", (16, 16), (20 * number,) * 3) for number in range(9)]
    save_video(Video(tuple(shades), 4.0), tmp_path / "shades.mp4", {})
    for many, places in ((4, (0, 2, 5, 8)), (1, (0,)), (-1, range(9))):
        found = video_to_ndarrays(str(tmp_path / "shades.mp4"), num_frames=many)
        assert found.shape == (len(places), 16, 16, 3) and found.dtype == np.uint8
        assert np.abs(found.mean((1, 2, 3)) - [20 * place for place in places]).max() < 6
    with pytest.raises(RequestError, match="has 9 frames, and num_frames=16 are wanted; ask for fewer"):
        video_to_ndarrays(str(tmp_path / "shades.mp4"), num_frames=16)


def test_a_picture_in_another_mode_lies_over_white_where_it_was_clear() -> None:
    clear, grey = Image.new("RGBA", (2, 2), (255, 0, 0, 0)), Image.new("L", (2, 2), 7)
    assert convert_image_mode(clear, "RGB").getpixel((0, 0)) == (255, 255, 255)
    assert convert_image_mode(grey, "RGB").getpixel((0, 0)) == (7, 7, 7)
    assert convert_image_mode(grey, "L") is grey


def test_text_alone_is_text_alone_and_several_prompts_are_several(
    run: Run, talking: tuple[str, Path], tmp_path: Path
) -> None:
    kind, folder = talking
    words = ("--model", folder, "--kind", kind, "--max-tokens", 8, "--num-prompts", 2, "--modalities", "text")
    told = run("multimodal_chat", *words, "--talker-stop", *ends(kind, folder))
    assert told == ["Text of stage 0 saved"] * 2
    assert len(list((tmp_path / "output_audio").iterdir())) == 2


def test_what_the_script_chooses_and_cannot_be_is_refused(run: Run, talking: tuple[str, Path]) -> None:
    kind, folder = talking
    words = ("--model", folder, "--kind", kind, "--max-tokens", 8)
    with pytest.raises(RequestError, match=r"stop_token_ids=\[3000\] of stage 1 cannot be chosen: it ends at"):
        run("multimodal_chat", *words, "--talker-stop", 3000)
    with pytest.raises(ConfigError, match=r"worker_backend='ray' is not honoured here"):
        run("multimodal_chat", *words, "--worker-backend", "ray")
    with pytest.raises(ConfigError, match=r"log_file='omni_llm_pipeline.log' is not honoured here"):
        run("multimodal_chat", *words, "--enable-stats")


# -- what writes -----------------------------------------------------------------------------------------------------


def test_a_model_that_writes_is_asked_as_vllm_is(run: Run, tmp_path: Path) -> None:
    told = run("text_chat", qwen3.build(tmp_path / "tiny"))
    assert [line.partition(", ")[0] for line in told] == ["Prompt: 'a red circle'", "Prompt: 'two blue squares'"]


# -- what writes and draws -------------------------------------------------------------------------------------------


def bagel(tiny: Callable[[str], Path]) -> Path:
    return tiny("BagelForConditionalGeneration")


def test_bagel_draws_what_it_is_told_in_its_template(run: Run, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    folder = bagel(tiny)
    words = ("--model", folder, "--prompts", "a red circle", "--steps", 5, "--cfg-text-scale", 3.0, "--seed", 7)
    assert run("unified", *words)[-1] == "stages: 2"
    with ours(folder) as omni:
        [made] = omni.generate("a red circle", num_inference_steps=4, guidance_scale=3.0, seed=7, progress=False)
    assert same(tmp_path / "output_0_0.png", made.images[0]), "between five levels of noise there are four steps"


def test_bagel_changes_a_picture_and_tells_of_it(run: Run, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    folder = bagel(tiny)
    photo(40, 52).save(tmp_path / "seen.png")
    words = ("--model", folder, "--prompts", "make it blue", "--image-path", "seen.png")
    run("unified", *words, "--modality", "img2img", "--steps", 4, "--cfg-img-scale", 2.0, "--seed", 9)
    told = run("unified", *words, "--modality", "img2text", "--max-tokens", 6)
    alone = run("unified", *words, "--modality", "text2text", "--max-tokens", 6)
    with ours(folder) as omni:
        asked: Any = {"prompt": "make it blue", "images": [photo(40, 52)]}
        extra = {"picture_scale": 2.0}
        [made] = omni.generate(asked, num_inference_steps=3, guidance_scale=4.0, seed=9, extra=extra, progress=False)
        answers = [
            omni.generate(each, extra={"modalities": ("text",), "max_tokens": 6}, progress=False)[0].text
            for each in (asked, "make it blue")
        ]
    assert same(tmp_path / "output_0_0.png", made.images[0])
    assert [told[0], alone[0]] == [f"Text: {text!r}" for text in answers]


def test_what_bagels_script_cannot_have_is_refused(run: Run, tiny: Callable[[str], Path]) -> None:
    words = ("--model", bagel(tiny), "--prompts", "a", "--steps", 4)
    with pytest.raises(RequestError, match=r"cfg_parallel_size=2 is not honoured here; leave it out, or say 1"):
        run("unified", *words, "--cfg-parallel-size", 2)
    with pytest.raises(RequestError, match=r"1 levels of noise have no step between them"):
        run("unified", "--model", bagel(tiny), "--prompts", "a", "--steps", 1)


def test_glm_image_writes_what_is_in_a_picture_and_draws_it(
    run: Run, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tiny("GlmImagePipeline")
    words = ("--model-path", folder, "--prompt", "a red circle", "--height", 64, "--width", 96, "--seed", 3)
    steps = ("--num-inference-steps", 2, "--guidance-scale", 2.0)
    assert run("prior_and_picture", *words, *steps) == ["Image of stage 1, request True", "Generated 1 image(s)"]
    assert run("prior_and_picture", *words, *steps, "--num-prompts", 2, "--output", "two.png")[-1].endswith(
        "2 image(s)"
    )
    photo(64, 64).save(tmp_path / "seen.png")
    run("prior_and_picture", "--model-path", folder, "--prompt", "make it blue", "--image", "seen.png", *steps)
    how: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 2.0, "progress": False}
    with ours(folder) as omni:
        [made] = omni.generate("a red circle", height=64, width=96, seed=3, **how)
        asked: Any = {"prompt": "make it blue", "images": [photo(64, 64)]}
        [changed] = omni.generate(asked, height=64, width=64, seed=42, **how)
    assert same(tmp_path / "two_0_0.png", made.images[0])
    assert same(tmp_path / "output_glm_image.png", changed.images[0])


def test_what_writes_and_has_drawn_has_parameters_for_both(once: Once) -> None:
    from omnimuse.compat.vllm import SamplingParams
    from omnimuse.compat.vllm_omni import Omni
    from omnimuse.compat.vllm_omni.inputs.data import OmniDiffusionSamplingParams

    folder = once.folder("TalkAndDraw", talk_and_draw.build)
    with Omni(model=str(folder), dtype="float32", device="cpu") as omni:
        kinds = [type(each) for each in omni.default_sampling_params_list]
        assert kinds == [SamplingParams, OmniDiffusionSamplingParams]
        drawn = OmniDiffusionSamplingParams(num_inference_steps=2)
        with pytest.raises(RequestError, match="SamplingParams mean nothing to stage 1, which draws"):
            omni.generate("a star", [SamplingParams(), SamplingParams()])
        made = omni.generate("a star", [SamplingParams(temperature=0.0, max_tokens=9, seed=4), drawn])
    assert {each.final_output_type: each.stage_id for each in made}.items() <= {"text": 0, "image": 1}.items()


# -- what speaks -----------------------------------------------------------------------------------------------------

KINDS = {
    "CustomVoice": ("custom_voice", ("She said she would be here by noon.", "Really?")),
    "VoiceDesign": ("voice_design", ("It's in the top drawer.",)),
    "Base": ("base", ("Good one. Goodbye.",)),
}


@pytest.mark.parametrize("query", KINDS)
def test_every_kind_of_speech_is_asked_for_in_additional_information(run: Run, tmp_path: Path, query: str) -> None:
    kind, texts = KINDS[query]
    folder = qwen3_tts.build(tmp_path / "tiny", kind=kind)
    wave = np.sin(np.arange(36_000) / 20).astype(np.float32) / 2
    soundfile.write(tmp_path / "said.wav", wave, 24_000)
    words = ("--model", folder, "--query-type", query, "--max-new-tokens", 6, "--ref-audio", "said.wav")
    for how in ((), ("--streaming",)):
        told = run("speech", *words, "--mode-tag", "xvec_only", *how)
        assert len(told) == len(texts) and all(line.endswith(" at 2400") for line in told)
    assert len(list((tmp_path / "output_audio").iterdir())) == 2 * len(texts)
    if query == "Base":
        heard = dict[str, list[Any]]()
        for how in ("icl", "xvec_only"):
            run("speech", *words, "--mode-tag", how, "--output-dir", how)
            [file] = (tmp_path / how).iterdir()
            heard[how] = soundfile.read(file)[0].tolist()
        assert heard["icl"] != heard["xvec_only"]
        alone = {"ref_audio": ["said.wav"], "text": ["a star"], "x_vector_only_mode": [False]}
        with (
            Omni(model=str(folder)) as made,
            pytest.raises(RequestError, match="ref_text is missing: say what is said"),
        ):
            made.generate({"prompt_token_ids": [0], "additional_information": alone})
        with pytest.raises(RequestError, match=r"there is no sound https://there/clone.wav; give the name of a file"):
            run("speech", *words[:-1], "https://there/clone.wav", "--mode-tag", "xvec_only")
