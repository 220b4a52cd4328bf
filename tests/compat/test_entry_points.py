"""Scripts of the contract: `Omni` and `AsyncOmni` by the other root, with the options and the shapes that they know."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from omnimuse.compat.vllm_omni import AsyncOmni, Omni
from omnimuse.compat.vllm_omni.diffusion.data import DiffusionParallelConfig
from omnimuse.compat.vllm_omni.entrypoints.options import config_of, prompt_of
from omnimuse.compat.vllm_omni.inputs.data import OmniDiffusionSamplingParams
from omnimuse.compat.vllm_omni.outputs import OmniRequestOutput
from omnimuse.core.config import CacheConfig, OffloadConfig, ParallelConfig
from omnimuse.core.errors import ConfigError, RequestError
from tests.compat.test_staged_scripts import STAGED

SMALL = OmniDiffusionSamplingParams(num_inference_steps=2, height=32, width=32, seed=42)


@pytest.fixture(scope="module")
def omni() -> Iterator[Omni]:
    with Omni(model="omnimuse/shapes", trust_remote_code=True, device="cpu") as made:
        yield made


def test_a_script_finds_its_pictures_in_both_shapes(omni: Omni) -> None:
    outputs = omni.generate(prompts=["a red circle"], negative_prompts=None, sampling_params=SMALL)
    assert isinstance(outputs, list)
    [output] = outputs
    assert isinstance(output.outputs[0], Image.Image)
    assert output.request_output[0].images[0] is output.outputs[0]
    assert (output.finished, output.final_output_type, output.outputs[0].size) == (True, "image", (32, 32))


def test_a_single_prompt_and_one_sampling_per_prompt_are_taken(omni: Omni) -> None:
    assert len(_list(omni.generate("a red circle", SMALL))) == 1
    several = _list(omni.generate([{"prompt": "a star"}, "a circle"], [SMALL, SMALL]))
    assert [each.prompt for each in several] == ["a star", "a circle"]
    assert {each.prompt for each in omni.generate(["a star", "a circle"], SMALL, py_generator=True)} == {
        "a star",
        "a circle",
    }


def _list(made: Any) -> list[OmniRequestOutput]:
    assert isinstance(made, list)
    return made


def test_an_asyncio_program_gets_the_same() -> None:
    async def run() -> list[OmniRequestOutput]:
        omni = AsyncOmni("omnimuse/shapes", device="cpu")
        found = [output async for output in omni.generate("a red circle", SMALL)]
        await omni.shutdown()
        return found

    assert [output.images[0].size for output in asyncio.run(run())] == [(32, 32)]


def test_an_asyncio_program_aborts_by_the_name_that_it_gave() -> None:
    async def run() -> tuple[list[OmniRequestOutput], list[OmniRequestOutput]]:
        omni = AsyncOmni("omnimuse/shapes", device="cpu")
        long = OmniDiffusionSamplingParams(num_inference_steps=500, seed=1)

        async def made(name: str, sampling: OmniDiffusionSamplingParams) -> list[OmniRequestOutput]:
            return [each async for each in omni.generate("a star", sampling, name, output_modalities=["image"])]

        gone, kept = asyncio.ensure_future(made("gone", long)), asyncio.ensure_future(made("kept", SMALL))
        found = await kept
        await omni.abort(["gone", "nobody"])
        left = await gone
        with pytest.raises(RequestError, match=r"modalities=\['text'\] cannot be; use \['image'\]"):
            await anext(omni.generate("a star", SMALL, output_modalities=["text"]))
        while not omni._ours.engine.idle:
            await asyncio.sleep(0.01)
        await omni.shutdown()
        return left, found

    left, [found] = asyncio.run(run())
    assert (left, found.request_id) == ([], "kept")


SCRIPTS = Path(__file__).parent / "scripts"
SIZES = ("--height", "32", "--width", "48", "--num-inference-steps", "2", "--guidance-scale", "2.5")
WORDS: Mapping[str, tuple[str, ...]] = {
    "text_to_image": ("--model", "omnimuse/shapes", "--output-dir", "made", *SIZES),
    "quick_start": ("omnimuse/shapes", "coffee.png"),
    "end2end": ("--model", "omnimuse/shapes", "--modality", "text2img", "--prompts", "A cute cat"),
    **dict.fromkeys(("functional", "visual_quality", "benchmark", "cached"), ("omnimuse/shapes",)),
}
"""What each script is called with."""

RUN = """import runpy, sys
for path, words in {runs}:
    sys.argv = [path, *words]
    runpy.run_path(path, run_name="__main__")
"""


def told_by(scripts: Sequence[str], folder: Path) -> list[str]:
    """What they print, one after the other in one process."""
    program = RUN.format(runs=[(str(SCRIPTS / f"{name}.py"), WORDS[name]) for name in scripts])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


FIRST = ("text_to_image", "quick_start")


def test_the_first_scripts_of_the_guides_run(tmp_path: Path) -> None:
    assert f"Saved image to: {Path('made') / 'generated_0.png'}" in told_by(FIRST, tmp_path)
    with Image.open(tmp_path / "made" / "generated_0.png") as first, Image.open(tmp_path / "coffee.png") as second:
        assert first.size == (48, 32)
        assert second.width > 0


@pytest.mark.costly
@pytest.mark.timeout(300)
def test_all_other_scripts_of_the_documents_run(tmp_path: Path) -> None:
    elsewhere = {"__init__", "openai_chat_client", "openai_multimodal_client", *STAGED}
    assert set(WORDS) == {path.stem for path in SCRIPTS.glob("*.py")} - elsewhere
    told = told_by([name for name in WORDS if name not in FIRST], tmp_path)
    assert "Generated: a cute puppy playing in grass" in told and told[-1] == "3"
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "output_0_0.png",
        *(f"test_output_{i}.png" for i in range(4)),
    }


def test_what_is_chosen_when_an_engine_starts_is_refused_later(omni: Omni) -> None:
    with pytest.raises(RequestError, match=r"max_num_seqs=2 is chosen when the engine starts"):
        omni.generate("a star", SMALL, max_num_seqs=2)
    with pytest.raises(RequestError, match=r"max_batch_size=2 is chosen when .* write Omni\(..., max_num_seqs=...\)"):
        omni.generate("a star", SMALL, max_batch_size=2)
    with pytest.raises(RequestError, match=r"use_tqdm=.* is not allowed; use True or False"):
        omni.generate("a star", SMALL, use_tqdm=list)  # type: ignore[arg-type]
    with pytest.raises(AttributeError, match=r"Omni has no 'start_profile' here: .*docs/compat.md"):
        omni.start_profile()


def test_what_was_given_for_nothing_of_ours_is_refused(omni: Omni) -> None:
    with pytest.raises(RequestError, match=r"eta cannot be given here; docs/compat.md"):
        omni.generate("a star", OmniDiffusionSamplingParams(eta=0.5))


def test_options_mean_what_they_mean_there() -> None:
    parallel = DiffusionParallelConfig(tensor_parallel_size=2, ulysses_degree=2, cfg_parallel_size=2)
    assert config_of("m", {"parallel_config": parallel}).parallel == ParallelConfig(tensor=2, ulysses=2, cfg=2)
    cached = config_of("m", {"cache_backend": "tea_cache", "cache_config": {"rel_l1_thresh": 0.2}})
    assert cached.cache == CacheConfig("teacache", 0.2)
    given = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "max_warmup_steps": 4, "residual_diff_threshold": 0.24}
    blocks = config_of("m", {"cache_backend": "cache_dit", "cache_config": given}).cache
    assert blocks == CacheConfig("dbcache", 0.24, first=1, last=0, warm_up=4)
    with pytest.raises(ConfigError, match="cache_backend='fast' is not taken here"):
        config_of("m", {"cache_backend": "fast"})
    assert config_of("m", {"enable_layerwise_offload": True}).offload == OffloadConfig("layers")
    assert config_of("m", {"enable_cpu_offload": True, "vae_use_slicing": True}).offload == OffloadConfig("components")
    assert config_of("m", {"vae_use_tiling": True}).decode.tiling
    assert config_of("m", {"enforce_eager": False}).compile.mode == "blocks"
    assert config_of("m", {"max_num_seqs": 2}).schedule.max_running == 2


def test_an_option_that_is_not_known_names_the_table() -> None:
    with pytest.raises(ConfigError, match=r"vae_tilling is no option here; did you mean .*; docs/compat.md"):
        config_of("m", {"vae_tilling": True})  # type: ignore[typeddict-unknown-key]
    with pytest.raises(ConfigError, match=r"ray_address='x' is not honoured here; leave it out: ranks are processes"):
        config_of("m", {"ray_address": "x"})  # type: ignore[typeddict-unknown-key]
    with pytest.raises(ConfigError, match=r"device_map='auto' is not honoured here; .*enable_cpu_offload"):
        config_of("m", {"device_map": "auto"})  # type: ignore[typeddict-unknown-key]


def test_a_file_of_stages_places_them_in_pools(tmp_path: Path) -> None:
    file = tmp_path / "stages.yaml"
    file.write_text("stage_args: [{stage_id: 0}, {stage_id: 1, runtime: {devices: '1'}}]")
    deploy = config_of("m", {"stage_configs_path": str(file)}).deploy
    assert [(pool.tracks, pool.device) for pool in deploy.pools] == [((0,), ""), ((), "cuda:1")]
    assert deploy.pools[-1].stages == ("*",), "the last of theirs is all that is left: they have no more"


def test_pictures_come_out_of_multi_modal_data() -> None:
    picture = Image.new("RGB", (8, 8))
    assert prompt_of({"prompt": "a", "multi_modal_data": {"image": picture}}) == {"prompt": "a", "images": [picture]}
    with pytest.raises(RequestError, match="give pictures as 'image'"):
        prompt_of({"prompt": "a", "multi_modal_data": {"video": picture}})
