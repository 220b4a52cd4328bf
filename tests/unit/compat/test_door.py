"""Pipelines that run through the library, on our engine: turns, cancel, pause, previews, failures, and the truth."""

from __future__ import annotations

import gc
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image

from omnimuse import Config, ModelConfig, Omni
from omnimuse.api import explain
from omnimuse.cli import main
from omnimuse.compat.diffusers.call import Call
from omnimuse.core.amounts import told_bytes
from omnimuse.core.config import CacheConfig, CompileConfig, KernelConfig, OffloadConfig, ScheduleConfig
from omnimuse.core.errors import ConfigError, ModelError, RequestCancelled, RequestError
from omnimuse.core.output import Done, Event, Failed, Preview, Progress
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import Background, start
from omnimuse.worker.find import find
from omnimuse.worker.warm_up import SMALL as SMALL_SIZE
from omnimuse.worker.warm_up import describe, warm_up_ask
from tests.checkpoints.foreign import with_class, with_safety_checker
from tests.checkpoints.parts import with_scheduler
from tests.checkpoints.wishes import photo
from tests.invariants.conftest import drain

Folder = Callable[[str], Path]
ARCH = "StableDiffusionXLPipeline"
SMALL = DiffusionParams(num_inference_steps=4, height=32, width=48, seed=3, output_type="pt")


def config(folder: Path, **parts: object) -> Config:
    chosen = {"schedule": ScheduleConfig(strict_slots=True, company="always"), **parts}
    return Config(ModelConfig(str(folder), dtype="float32", device="cpu"), **chosen)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def engine(foreign_folder: Folder) -> Iterator[Engine]:
    made = start(config(foreign_folder(ARCH)))
    yield made
    made.close()


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="it is installed")
def test_weights_that_bitsandbytes_packed_need_that_library_which_is_named(
    foreign_folder: Folder, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(foreign_folder(ARCH), tmp_path / "packed"))
    about = folder / "text_encoder" / "config.json"
    packed = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    about.write_text(json.dumps({**json.loads(about.read_text()), "quantization_config": packed}))
    with pytest.raises(ModelError, match=r'text_encoder needs a package.*; pip install "omnimuse\[bitsandbytes\]"'):
        start(config(folder))


def submit(engine: Engine, tenant: str = "", previews: int = 0, **choices: object) -> str:
    params = replace(SMALL, **choices)  # type: ignore[arg-type]
    return engine.submit(engine.make_request(Ask("a red circle", params, tenant=tenant, previews=previews)))


def output(events: list[Event], id_: str) -> torch.Tensor:
    [done] = [event for event in events if isinstance(event, Done) and event.request_id == id_]
    return done.result.output


def alone(engine: Engine, **choices: object) -> torch.Tensor:
    id_ = submit(engine, **choices)
    return output(drain(engine), id_)


def parked() -> list[Call]:
    return [each for each in gc.get_objects() if type(each) is Call and bool(each)]


def test_requests_in_flight_take_turns_step_by_step_and_stay_what_they_are_alone(engine: Engine) -> None:
    choices = ({"seed": 1}, {"seed": 2, "num_inference_steps": 2, "guidance_scale": 1.0, "height": 64})
    expected = [alone(engine, **each) for each in choices]
    first, second = [submit(engine, **each) for each in choices]
    events = drain(engine)
    steps = [(e.request_id, e.step) for e in events if isinstance(e, Progress) and e.stage == "denoise"]
    assert [step for _, step in steps[:4]] == [1, 1, 2, 2]
    assert {id_ for id_, _ in steps[:2]} == {id_ for id_, _ in steps[2:4]} == {first, second}
    for id_, tensor in zip((first, second), expected, strict=True):
        assert torch.equal(output(events, id_), tensor)


def test_two_tenants_are_served_alike_step_by_step(foreign_folder: Folder) -> None:
    subject = start(config(foreign_folder(ARCH), schedule=ScheduleConfig()))
    ids = [submit(subject, tenant=name, num_inference_steps=8) for name in ("a", "b")]
    steps = [e.request_id for e in drain(subject) if isinstance(e, Progress) and e.stage == "denoise"]
    subject.close()
    for at in range(4, 12):  # steps begin together; whatever order, neither is ever far ahead
        assert abs(steps[:at].count(ids[0]) - steps[:at].count(ids[1])) <= 2


def test_there_is_one_event_per_step_and_the_last_step_says_so(engine: Engine) -> None:
    submit(engine, num_inference_steps=3)
    events = [(e.stage, e.step, e.steps) for e in drain(engine) if isinstance(e, Progress)]
    assert events == [("denoise", 1, 3), ("denoise", 2, 3), ("denoise", 3, 3), ("decode", 1, 1)]


def test_custom_sigmas_make_as_many_steps_as_there_are(foreign_folder: Folder) -> None:
    subject = start(config(foreign_folder("AuraFlowPipeline")))
    submit(subject, extra={"sigmas": [1.0, 0.5]})
    steps = [(e.step, e.steps) for e in drain(subject) if isinstance(e, Progress) and e.stage == "denoise"]
    subject.close()
    assert steps == [(1, 2), (2, 2)]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("arch", ["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
def test_a_scheduler_that_evaluates_more_often_tells_of_as_many_steps_as_the_door_counts(
    arch: str, foreign_folder: Folder, tmp_path: Path
) -> None:
    """One repeats its second step, the other looks at both ends of all but the last."""
    from diffusers import HeunDiscreteScheduler

    folder = foreign_folder(arch)
    if arch == "StableDiffusionXLPipeline":
        folder = with_scheduler(folder, tmp_path / "heun", lambda own: HeunDiscreteScheduler.from_config(own.config))
    subject = start(config(folder))
    made = subject.make_request(Ask("a red circle", replace(SMALL, num_inference_steps=5)))
    subject.submit(made)
    steps = [(e.step, e.steps) for e in drain(subject) if isinstance(e, Progress) and e.stage == "denoise"]
    subject.close()
    assert made.evaluations == (9 if arch == "StableDiffusionXLPipeline" else 6)
    assert steps == [(step, made.evaluations) for step in range(1, made.evaluations + 1)]


@pytest.mark.parametrize("after", [1, 3])
def test_cancelling_between_steps_unwinds_the_call_and_leaves_the_others_alone(engine: Engine, after: int) -> None:
    expected = alone(engine, seed=5)
    kept, gone = submit(engine, seed=5), submit(engine, seed=6, num_inference_steps=8)
    events = [event for _ in range(after) for event in engine.tick()]
    assert len(parked()) == 2
    engine.cancel(gone)
    events += engine.tick()
    assert len(parked()) == 1
    [failed] = [event for event in events if isinstance(event, Failed)]
    assert (failed.request_id, type(failed.error)) == (gone, RequestCancelled)
    assert torch.equal(output([*events, *drain(engine)], kept), expected)
    assert parked() == []


def test_a_paused_request_stands_still_and_goes_on_as_if_nothing_had_been(engine: Engine) -> None:
    expected = alone(engine)
    id_ = submit(engine)
    engine.tick()
    engine.pause(id_)
    assert engine.tick() == []
    assert engine.idle
    engine.resume(id_)
    assert torch.equal(output(drain(engine), id_), expected)


def test_previews_are_small_pictures_of_unfinished_latents_and_change_nothing(engine: Engine) -> None:
    expected = alone(engine)
    id_ = submit(engine, previews=1)
    events = drain(engine)
    looks = [event for event in events if isinstance(event, Preview)]
    assert [look.step for look in looks] == [1, 2, 3]
    assert {look.image.shape for look in looks} == {(32, 48, 3)}
    assert torch.equal(output(events, id_), expected)


def test_what_the_pipeline_refuses_ends_its_own_request_with_the_librarys_words(engine: Engine) -> None:
    bad, good = submit(engine, extra={"sigmas": [1.0], "timesteps": [900]}), submit(engine)
    events = drain(engine)
    [failed] = [event for event in events if isinstance(event, Failed)]
    assert failed.request_id == bad
    assert isinstance(failed.error, RequestError)
    assert f"{ARCH} refuses this request: Only one of `timesteps` or `sigmas` can be passed" in str(failed.error)
    assert output(events, good).shape == (1, 3, 32, 48)
    assert parked() == []


def test_what_the_library_warns_of_is_told(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    id_ = engine.submit(engine.make_request(Ask("a red circle " * 40, replace(SMALL, num_outputs_per_prompt=2))))
    events = drain(engine)
    [done] = [event for event in events if isinstance(event, Done)]
    assert len(set(done.result.warnings)) == len(done.result.warnings)
    assert done.result.warnings[0].startswith("The following part of your input was truncated")
    told = f"output {id_}/0: The following part of your input was truncated"
    assert any(message.startswith(told) for message in caplog.messages)


@pytest.mark.parametrize(("threshold", "black"), [(1.0, False), (-1.0, True)])
def test_components_that_stand_beside_a_pipeline_are_loaded_and_what_they_do_is_told(
    threshold: float, black: bool, foreign_folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = with_safety_checker(foreign_folder("StableDiffusionPipeline"), tmp_path / "tiny", threshold)
    with Omni(str(folder), dtype="float32", device="cpu") as omni:
        [result] = omni.generate(["a"], SMALL, progress=False)
    assert result.error is None, result.error
    assert (float(result.output.max()) == 0.0) is black
    assert any("A black image will be returned" in message for message in caplog.messages) is black


def test_closing_an_engine_unwinds_what_stands_still_and_leaves_torch_as_it_was(foreign_folder: Folder) -> None:
    subject = start(config(foreign_folder(ARCH)))
    submit(subject, num_inference_steps=8)
    subject.tick()
    assert len(parked()) == 1
    subject.close()
    assert parked() == []
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_closing_an_engine_on_a_thread_of_its_own_unwinds_what_stands_still(foreign_folder: Folder) -> None:
    threads = threading.active_count()
    background = Background(partial(start, config(foreign_folder(ARCH))))
    stepped = threading.Event()
    request = background.engine.make_request(Ask("a red circle", replace(SMALL, num_inference_steps=5000)))
    background.submit(request, lambda event: stepped.set())
    assert stepped.wait(60)
    background.close()
    assert parked() == []
    assert threading.active_count() == threads


def test_a_choice_that_the_class_does_not_have_is_refused_by_name(engine: Engine) -> None:
    asks = {
        "num_frames means nothing to StableDiffusionXLPipeline": {"num_frames": 5},
        "did you mean 'guidance_rescale'": {"extra": {"guidance_rescal": 1.0}},
        "width=44 is not a multiple of 8; use 40 or 48": {"width": 44},
        "strength means nothing to": {"strength": 0.5},
    }
    for message, choices in asks.items():
        with pytest.raises(RequestError, match=message):
            submit(engine, **choices)
    with pytest.raises(RequestError, match="this StableDiffusionXLPipeline works from text only"):
        engine.make_request(Ask({"prompt": "a", "images": [object()]}, SMALL))


@pytest.mark.parametrize(
    "feature",
    [
        {"cache": CacheConfig("teacache")},
        {"offload": OffloadConfig("layers")},
        {"compile": CompileConfig("blocks")},
        {"kernels": KernelConfig("triton")},
    ],
    ids=lambda feature: next(iter(feature)),
)
def test_a_feature_of_our_own_networks_is_refused_and_not_ignored(
    feature: dict[str, object], foreign_folder: Folder
) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(feature))} cannot be chosen for this model: it runs through"):
        find(config(foreign_folder(ARCH), **feature))


def test_explain_says_what_runs_through_the_library_and_what_that_means(foreign_folder: Folder) -> None:
    choices = {(choice.topic, choice.name): choice for choice in explain(str(foreign_folder(ARCH)), device="cpu")}
    through = choices["diffusers", "runs through"]
    assert (through.value, through.reason) == (
        "diffusers",
        "as one call per output, since no family here covers StableDiffusionXLPipeline",
    )
    assert choices["diffusers", "shared forwards"].value == "no"
    assert choices["defaults", "height"].value == "128"
    assert choices["model", "defaults"].reason == "diffusers has them for this class"
    assert choices["batching", "tier"].value == "exact"
    files = foreign_folder(ARCH).glob("*/*.safetensors")
    assert choices["memory", "all weights"].value == told_bytes(sum(file.stat().st_size for file in files))
    assert ("solver", "denoise") not in choices


def test_the_command_line_tells_what_a_folder_takes(foreign_folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", str(foreign_folder(ARCH))]) == 0
    told = capsys.readouterr().out
    assert "StableDiffusionXLPipeline of diffusers (text-to-image)" in told
    assert re.search(r"clip_skip +int \| None = None +Number of layers to be skipped from CLIP", told)
    assert "guidance_scale          5.0" in told
    assert "no: the library calls its networks itself" in told
    assert main(["models", str(foreign_folder("LongCatAudioDiTPipeline")), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["library"], row["tasks"], row["pictures"]) == ("diffusers", ["text-to-audio"], [0, 0])


def test_a_picture_to_start_from_goes_in_and_strength_shortens_the_steps(
    foreign_folder: Folder, tmp_path: Path
) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    folder = with_class(foreign_folder("StableDiffusionPipeline"), tmp_path / "tiny", "StableDiffusionImg2ImgPipeline")
    picture, events = photo(48, 32), list[Event]()
    params = DiffusionParams(num_inference_steps=6, strength=0.5, seed=3, output_type="pt")
    with Omni(str(folder), dtype="float32", device="cpu") as omni:
        [result] = omni.generate([{"prompt": "a", "images": [picture]}], params, progress=events.append)
        [without] = omni.generate(["a"], DiffusionParams(), progress=False)
    assert result.error is None, result.error
    assert "needs at least 1" in str(without.error)
    steps = [(e.step, e.steps) for e in events if isinstance(e, Progress) and e.stage == "denoise"]
    assert steps[-1][0] == steps[-1][1] < 6
    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    made = pipe("a", image=picture, num_inference_steps=6, strength=0.5, generator=generator, output_type="pt")
    assert torch.equal(result.output[0], made[0][0])


def test_a_worker_warms_up_with_what_the_class_takes(foreign_folder: Folder, tmp_path: Path) -> None:
    text = warm_up_ask(SMALL_SIZE, find(config(foreign_folder(ARCH))).door)
    assert text is not None
    assert (text.params.width, text.params.height, text.prompt["images"]) == (256, 256, [])  # type: ignore[index]
    arch = "StableDiffusionImg2ImgPipeline"
    picture = warm_up_ask(
        SMALL_SIZE, find(config(with_class(foreign_folder("StableDiffusionPipeline"), tmp_path / "tiny", arch))).door
    )
    assert picture is not None
    assert (picture.params.width, len(picture.prompt["images"])) == (None, 1)  # type: ignore[index]
    assert describe(picture) == "its own size"
    sound = warm_up_ask(SMALL_SIZE, find(config(foreign_folder("LongCatAudioDiTPipeline"))).door)
    assert sound is not None
    assert (sound.params.width, sound.params.num_inference_steps) == (None, 1)


def test_pictures_go_to_the_parameters_that_take_them_in_their_order(foreign_folder: Folder, tmp_path: Path) -> None:
    from diffusers import StableDiffusionInpaintPipeline

    folder = with_class(foreign_folder("StableDiffusionPipeline"), tmp_path / "tiny", "StableDiffusionInpaintPipeline")
    picture, mask = photo(48, 32), Image.new("RGB", (48, 32))
    mask.paste((255, 255, 255), (0, 0, 24, 32))
    params = DiffusionParams(num_inference_steps=3, strength=1.0, height=32, width=48, seed=3, output_type="pt")
    with Omni(str(folder), dtype="float32", device="cpu") as omni:
        result = omni.generate({"prompt": "a", "images": [picture, mask]}, params, progress=False)[0]
    pipe = StableDiffusionInpaintPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    made = pipe(
        "a",
        image=picture,
        mask_image=mask,
        height=32,
        width=48,
        strength=1.0,
        num_inference_steps=3,
        generator=torch.Generator().manual_seed(3),
        output_type="pt",
    )
    assert torch.equal(result.output[0], made[0][0])


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("StableDiffusion33Pipeline", "the closest that it has is StableDiffusion3Pipeline"),
        ("KandinskyV22PriorPipeline", "gives image_embeds, negative_image_embeds and no picture, video or sound"),
        ("StableDiffusionDiffEditPipeline", "differentiates its networks while it draws"),
        ("DiTPipeline", "takes neither a prompt nor a picture"),
    ],
)
def test_a_class_that_cannot_be_run_is_refused_with_the_reason(
    arch: str, message: str, foreign_folder: Folder, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        find(config(with_class(foreign_folder(ARCH), tmp_path / "tiny", arch)))


def test_a_component_that_the_class_needs_and_the_checkpoint_lacks_is_named(
    foreign_folder: Folder, tmp_path: Path
) -> None:
    folder = with_class(foreign_folder(ARCH), tmp_path / "tiny", ARCH, unet=[None, None])
    with pytest.raises(ModelError, match=r"no component 'unet', which StableDiffusionXLPipeline needs"):
        find(config(folder))


def test_code_that_comes_with_a_checkpoint_is_never_run(foreign_folder: Folder, tmp_path: Path) -> None:
    folder = with_class(foreign_folder(ARCH), tmp_path / "tiny", ARCH, vae=["my_vae", "MyVae"])
    (folder / "my_vae.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(ModelError, match=r"my_vae.MyVae: code from elsewhere is never run"):
        start(config(folder))


def test_random_weights_do_where_only_configurations_are_there(foreign_folder: Folder, tmp_path: Path) -> None:
    folder = with_class(foreign_folder(ARCH), tmp_path / "tiny", ARCH)
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    chosen = Config(ModelConfig(str(folder), dtype="float32", device="cpu", load="dummy"))
    with Omni(str(folder), config=chosen) as omni:
        [result] = omni.generate(["a"], SMALL, progress=False)
    assert result.error is None
    assert result.output.isfinite().all()
