"""Step caches of pipelines that run through diffusers: cache-dit's, and what it gives when it is called directly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from torch import Tensor

from omnimuse import Omni
from omnimuse.api import explain
from omnimuse.cli import main
from omnimuse.compat.diffusers.stepcache import FITS, known, settings
from omnimuse.compat.vllm_omni.entrypoints.options import config_of
from omnimuse.core.cache_names import documented
from omnimuse.core.caches import CacheConfig, cache_named, completed
from omnimuse.core.config import Config, ModelConfig
from omnimuse.core.errors import ConfigError, RequestError
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask
from omnimuse.core.step_masks import MASKS, step_mask
from omnimuse.engine.local import start
from omnimuse.loader.components import quiet
from omnimuse.worker.blocks import named_blocks
from tests.checkpoints.foreign import Foreign, foreign
from tests.distance import distance
from tests.invariants.conftest import config, drain, results, run, submit
from tests.second_device import SecondDevice, moved

Folder = Callable[[str], Path]
PROMPT, STEPS = "a red circle", 6
WRITTEN = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "max_warmup_steps": 2, "residual_diff_threshold": 9.0}
"""As the documents have it; at so high a threshold every step after the warm-up is skipped that may be."""
CHOICES = ("dbcache,threshold=9,warm_up=2", "dbcache,threshold=9,mask=101010,forced=true,order=2")
ROUNDING = 1e-5
"""Where a tensor lies in memory has a matrix library round in another way, on some processors."""
here = pytest.mark.skipif(not known(), reason="cache-dit is not installed: pip install 'omnimuse[cache-dit]'")
gone = pytest.mark.skipif(bool(known()), reason="cache-dit is installed")


def wish(entry: Foreign, **choices: object) -> tuple[dict[str, object], DiffusionParams]:
    asked = {"prompt": PROMPT} | ({} if entry.negative is None else {"negative_prompt": entry.negative})
    params = replace(entry.params, num_inference_steps=STEPS, num_outputs_per_prompt=2, output_type="pt")
    return asked, replace(params, **choices)  # type: ignore[arg-type]


def librarys(entry: Foreign, folder: Path, seed: int, choice: str) -> Tensor:
    """What the two libraries give without us."""
    from cache_dit import DBCacheConfig, TaylorSeerCalibratorConfig, disable_cache, enable_cache

    made = completed(cache_named(choice), FITS, STEPS)
    forecast = TaylorSeerCalibratorConfig(taylorseer_order=made.order) if made.order else None
    longer = replace(entry, params=replace(entry.params, num_inference_steps=STEPS))
    with quiet("diffusers"), quiet("transformers"):
        pipe = getattr(diffusers, entry.arch).from_pretrained(folder, dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        enable_cache(pipe, cache_config=DBCacheConfig(**settings(made)), calibrator_config=forecast)
        try:
            generator = torch.Generator().manual_seed(seed)
            return pipe(prompt=PROMPT, generator=generator, output_type="pt", **longer.arguments())[0][0]  # type: ignore[no-any-return]
        finally:
            disable_cache(pipe)


@here
def test_words_for_masks_are_drawn_as_cache_dit_draws_them_for_every_number_of_steps() -> None:
    from cache_dit import steps_mask

    for word in MASKS:
        for steps in (4, 6, *range(8, 101)):  # of others under 8 it draws none
            theirs = steps_mask(mask_policy=word, total_steps=steps)
            assert step_mask(word, steps) == "".join(map(str, theirs))


@here
@pytest.mark.parametrize("arch", ["SanaPipeline", "LTXPipeline"])
def test_two_outputs_in_turns_are_each_what_cache_dit_gives_and_one_without_is_untouched(
    arch: str, foreign_folder: Folder
) -> None:
    entry, folder = foreign(arch), foreign_folder(arch)
    asked, params = wish(entry)
    with Omni(str(folder), dtype="float32", device="cpu") as omni:
        found = {
            choice: omni.generate([asked], replace(params, cache=choice), progress=False)[0].output
            for choice in ("none", *CHOICES)
        }
        [after] = omni.generate([asked], params, progress=False)
    for choice in CHOICES:
        for output, seed in zip(found[choice], (7, 8), strict=True):
            assert distance(output, librarys(entry, folder, seed, choice)) < ROUNDING
        assert distance(found[choice], found["none"]) > 100 * ROUNDING
    assert torch.equal(after.output, found["none"])


@here
def test_every_run_of_a_block_that_cache_dit_does_not_skip_is_told_and_nothing_else_is_drawn(
    foreign_folder: Folder,
) -> None:
    entry = foreign("LTXPipeline")
    asked, params = wish(entry, num_outputs_per_prompt=1)
    asks = [Ask(asked, replace(params, cache=choice), blocks=True) for choice in ("none", CHOICES[0])]
    ran: list[str] = []
    with closing(start(config(foreign_folder(entry.arch)))) as engine:
        plain = run(engine, *(replace(ask, blocks=False) for ask in asks))
        components = engine.runner.pipeline.ctx.components
        for component in components:
            for name, block in named_blocks(component, components.wherever(component)):
                block.register_forward_hook(lambda *_, name=name: ran.append(name))
        found = []
        for ask, expected in zip(asks, plain, strict=True):
            ran.clear()
            [id_] = submit(engine, ask)
            [result] = results(engine, drain(engine), [id_])
            assert torch.equal(result.output, expected)
            assert {name: len(runs) for name, runs in result.blocks.items()} == Counter(ran)
            found.append(Counter(name for name in ran if name.startswith("transformer.")))
    exact, cached = found
    assert cached.keys() == exact.keys() and cached.total() < exact.total()


@here
@pytest.mark.crossed
def test_a_second_device_skips_by_cache_dit_what_the_cpu_skips(foreign_folder: Folder) -> None:
    """What the libraries wait for is theirs, and nobody counts it."""
    entry = foreign("SanaPipeline")
    asked, params = wish(entry)
    asks = [Ask(asked, replace(params, cache=choice)) for choice in ("none", *CHOICES)]
    with closing(start(config(foreign_folder(entry.arch)))) as engine:
        expected = run(engine, *asks)
        with SecondDevice() as device:
            found = run(moved(engine, device), *asks)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert not any(torch.equal(each, expected[0]) for each in expected[1:])


@here
def test_documented_settings_reach_cache_dit_as_they_are_written(foreign_folder: Folder) -> None:
    entry, folder = foreign("SanaPipeline"), foreign_folder("SanaPipeline")
    choice = documented("cache_dit", WRITTEN)
    assert {**settings(completed(choice, FITS)), **WRITTEN} == settings(completed(choice, FITS))
    asked, params = wish(entry, num_outputs_per_prompt=1)
    options = {"cache_backend": "cache_dit", "cache_config": WRITTEN, "dtype": "float32", "device": "cpu"}
    with Omni(str(folder), config=config_of(str(folder), options)) as omni:  # type: ignore[arg-type]
        [found] = omni.generate([asked], params, progress=False)
    assert distance(found.output[0], librarys(entry, folder, 7, str(choice))) < ROUNDING


@here
def test_a_word_for_masks_is_the_engine_s_choice_for_requests_of_any_number_of_steps(foreign_folder: Folder) -> None:
    entry, folder = foreign("SanaPipeline"), foreign_folder("SanaPipeline")
    choice = documented("cache_dit", {**WRITTEN, "scm_steps_mask_policy": "fast"})
    asked, params = wish(entry, num_outputs_per_prompt=1)
    with Omni(str(folder), config=Config(ModelConfig(str(folder), "float32", "cpu"), cache=choice)) as omni:
        [found] = omni.generate([asked], params, progress=False)
        [exact] = omni.generate([asked], replace(params, cache="none"), progress=False)
        once = [
            omni.generate([asked], replace(params, num_inference_steps=1, cache=cache), progress=False)[0].output
            for cache in (None, "none")
        ]
        with pytest.raises(RequestError, match=r"drawn for 4 steps at least .* evaluated 3 times"):
            omni.generate(asked, replace(params, num_inference_steps=3), progress=False)
    assert torch.allclose(found.output[0], librarys(entry, folder, 7, str(choice)), atol=1e-5)
    assert (found.output - exact.output).abs().max() > 1e-3
    assert torch.equal(*once)


@here
def test_what_cache_dit_does_not_know_or_have_is_refused_by_name(
    foreign_folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    entry, unknown = foreign("SanaPipeline"), str(foreign_folder("StableDiffusionPipeline"))
    asked, params = wish(entry)
    with Omni(str(foreign_folder(entry.arch)), dtype="float32", device="cpu") as omni:
        with pytest.raises(RequestError, match="cache='teacache' is not there for this model; use one of dbcache"):
            omni.generate(asked, replace(params, cache="teacache"), progress=False)
        with pytest.raises(RequestError, match="Fn_compute_blocks 99 must be less than the number of transformer"):
            omni.generate(asked, replace(params, cache="dbcache,first=99"), progress=False)
    with pytest.raises(ConfigError, match="cache-dit knows no pipeline StableDiffusionPipeline"):
        explain(unknown, config=Config(ModelConfig(unknown), cache=CacheConfig("dbcache")))
    assert main(["generate", PROMPT, "-m", unknown, "--cache", "dbcache"]) == 2
    assert "cache-dit knows no pipeline StableDiffusionPipeline" in capsys.readouterr().err
    told = {choice.name: choice.value for choice in explain(str(foreign_folder(entry.arch)))}
    assert told["step caches"] == "dbcache"


@gone
def test_without_cache_dit_the_refusal_says_how_to_get_it(foreign_folder: Folder) -> None:
    folder = str(foreign_folder("SanaPipeline"))
    with pytest.raises(ConfigError, match=r'pip install "omnimuse\[cache-dit\]"'):
        explain(folder, config=Config(ModelConfig(folder), cache=CacheConfig("dbcache")))
