"""The tables of SGLang's names: each is here or refused with its reason, and its test exists; small parts work."""

from __future__ import annotations

import ast
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

from omnimuse.compat.composed.discover import Package, package_of
from omnimuse.compat.composed.names import HERE
from omnimuse.compat.composed.sampling import OPTIONS, SAMPLING
from omnimuse.compat.composed.spec import ComposedParams
from omnimuse.compat.composed.table import NAMES, ROOT
from omnimuse.compat.composed.weights import renamed
from omnimuse.compat.contract.names import UnknownAttributeError, UnknownNameError
from omnimuse.compat.contract.surroundings import Surroundings, within
from omnimuse.compat.sglang.configs.models.encoders.base import EncoderConfig
from omnimuse.compat.sglang.configs.models.vaes.base import VAEConfig
from omnimuse.compat.sglang.configs.pipeline_configs.base import ModelTaskType, PipelineConfig, postprocess_text
from omnimuse.compat.sglang.configs.sample.sampling_params import DataType, SamplingParams
from omnimuse.compat.sglang.runtime import distributed
from omnimuse.compat.sglang.runtime.entrypoints.options import chosen, config_of, wanted_of
from omnimuse.compat.sglang.runtime.layers.attention import LocalAttention
from omnimuse.compat.sglang.runtime.managers.forward_context import get_forward_context, set_forward_context
from omnimuse.compat.sglang.runtime.pipelines_core.schedule_batch import Req
from omnimuse.compat.sglang.runtime.pipelines_core.stages import ImageEncodingStage, InputValidationStage
from omnimuse.compat.sglang.runtime.pipelines_core.stages.base import StageVerificationError
from omnimuse.compat.sglang.runtime.pipelines_core.stages.validators import StageValidators, VerificationResult
from omnimuse.compat.sglang.runtime.server_args import ServerArgs, get_global_server_args
from omnimuse.compat.sglang.utils import PRECISION_TO_TYPE
from omnimuse.compat.tables import Argument, Known, Refused
from omnimuse.core.config import OffloadConfig, ParallelConfig
from omnimuse.core.errors import ConfigError, ModelError, RequestError
from omnimuse.models import REGISTRY
from omnimuse.parallel.mesh import Mesh
from tests.compat.checkpoints import COMPOSED, PLUGIN
from tests.compat.running import named_in, taken

TESTS = Path(__file__).resolve().parent.parent.parent
NATIVE = REGISTRY.spec("FluxPipeline")
COMPOSED_SPEC = type("Spec", (), {"extra": ComposedParams, "arch": "Composed"})


def here(module: str) -> str:
    return HERE + module.removeprefix(ROOT)


@pytest.mark.parametrize("row", NAMES.known, ids=lambda row: f"{row.module}.{row.name}")
def test_every_name_is_there_and_its_test_exists(row: Known) -> None:
    assert hasattr(import_module(here(row.module)), row.name)
    assert row.where and row.does
    path, _, name = row.test.partition("::")
    assert name in named_in(TESTS / path)


@pytest.mark.parametrize("row", NAMES.refused, ids=lambda row: f"{row.module}.{row.name}")
def test_every_refused_name_says_why(row: Refused) -> None:
    name = "Anything" if row.name == "*" else row.name
    with pytest.raises(UnknownNameError) as caught:
        exec(f"from {here(row.module)} import {name}")
    assert row.why in str(caught.value)


@pytest.mark.parametrize("row", NAMES.arguments, ids=lambda row: f"{row.owner}.{row.name}")
def test_every_argument_is_taken(row: Argument) -> None:
    assert row.name in taken(import_module(here(row.module)), row.owner)


def test_every_module_refuses_a_name_that_it_has_not() -> None:
    root = TESTS / "omnimuse" / "compat" / "sglang"
    for path in set(root.rglob("*.py")) - {root / "__main__.py"}:
        parts = path.relative_to(TESTS).with_suffix("").parts
        module = import_module(".".join(part for part in parts if part != "__init__"))
        with pytest.raises(UnknownAttributeError, match=r"has no 'Nothing' here"):
            module.Nothing  # noqa: B018
        assert not hasattr(module, "Nothing")
        with pytest.raises(UnknownNameError, match=r"has no 'Nothing' here"):
            exec(f"from {module.__name__} import Nothing")


def test_every_class_that_the_guide_names_is_in_a_table() -> None:
    named = {row.name for row in (*NAMES.known, *NAMES.refused)}
    guide = {
        *("ComposedPipelineBase", "PipelineStage", "PipelineConfig", "SamplingParams", "ServerArgs"),
        *("InputValidationStage", "TextEncodingStage", "ImageEncodingStage", "ImageVAEEncodingStage"),
        *("ConditioningStage", "TimestepPreparationStage", "LatentPreparationStage", "DenoisingStage"),
        *("DecodingStage", "DmdDenoisingStage", "CausalDMDDenoisingStage", "_register_configs"),
    }
    assert guide <= named


def test_a_name_and_an_attribute_that_nobody_knows_name_the_table() -> None:
    with pytest.raises(ImportError, match=r"there is no sglang.runtime.layers.mlp here; docs/compat.md"):
        import_module("omnimuse.compat.sglang.runtime.layers.mlp")
    with pytest.raises(ImportError, match=r"has no 'Nothing' here; docs/compat.md"):
        from omnimuse.compat.sglang.runtime.pipelines_core.stages import Nothing  # noqa: F401
    for owner in (Req(), SamplingParams(), PipelineConfig(), VAEConfig(), args()):
        with pytest.raises(UnknownAttributeError, match=r"has no 'nothing' here; docs/compat.md"):
            owner.nothing  # noqa: B018


def args() -> ServerArgs:
    return ServerArgs(model_path="m", pipeline_config=PipelineConfig())


def test_every_documented_sampling_field_is_mapped_or_refused() -> None:
    stock = {each.name: each.default for each in fields(SamplingParams)}
    assert set(stock) == set(SAMPLING)
    for name, meaning in SAMPLING.items():
        assert bool(meaning.refused) != bool(meaning.about), name
        if meaning.refused:
            with pytest.raises(RequestError, match=f"{name} cannot be given here: .*docs/compat.md"):
                wanted_of({"prompt": "a", name: "something"}, NATIVE)
    given = {name: 2 for name, meaning in SAMPLING.items() if meaning.ours not in ("", "cache", "sampling")}
    params = wanted_of({"prompt": "a", "enable_teacache": True, **given}, NATIVE).params
    assert {getattr(params, name) for name in given} == {2} and params.cache == "teacache"
    with pytest.raises(RequestError, match="guidance_rescale cannot be given to FluxPipeline"):
        wanted_of({"prompt": "a", "guidance_rescale": 0.5}, NATIVE)
    with pytest.raises(RequestError, match="shift is no sampling parameter here"):
        wanted_of({"prompt": "a", "shift": 0.5}, NATIVE)
    own = wanted_of({"prompt": "a", "guidance_rescale": 0.5, "shift": 2}, COMPOSED_SPEC)  # type: ignore[arg-type]
    assert own.params.extra == {"sampling": {"guidance_rescale": 0.5, "shift": 2}}


def test_prompts_pictures_and_files_are_told(tmp_path: Path) -> None:
    lines = tmp_path / "prompts.txt"
    lines.write_text("a star\n\na heart\n")
    wanted = wanted_of({"prompt_path": str(lines), "image_path": "a.png", "save_output": False}, NATIVE)
    assert [each["prompt"] for each in wanted.prompts] == ["a star", "a heart"]
    assert wanted.prompts[0]["images"] == ["a.png"] and not wanted.files.save
    assert chosen(SamplingParams(prompt="a", seed=3)) == {"prompt": "a", "seed": 3}


def test_options_mean_what_they_mean_there() -> None:
    def of(**options: object):  # type: ignore[no-untyped-def]
        return config_of({"model_path": "m", **options})

    assert of(num_gpus=4, ulysses_degree=2, ring_degree=2).parallel == ParallelConfig(ulysses=2, ring=2)
    assert of(num_gpus=4).parallel == ParallelConfig(ulysses=4)
    assert of(num_gpus=4, sp_degree=4, ring_degree=2).parallel == ParallelConfig(ulysses=2, ring=2)
    assert of(num_gpus=4, tp_size=2, enable_cfg_parallel=True).parallel == ParallelConfig(tensor=2, cfg=2)
    assert of(num_gpus=2, use_fsdp_inference=True).parallel == ParallelConfig(ulysses=2, shard=2)
    assert of(num_gpus=2, vae_sp=True).parallel == ParallelConfig(ulysses=2, vae_tiles=2)
    assert of(dit_cpu_offload=True, pin_cpu_memory=True).offload == OffloadConfig("components")
    assert of(dit_layerwise_offload=True).offload == OffloadConfig("layers")
    assert of(enable_torch_compile=True).compile.mode == "blocks"
    assert of(attention_backend="torch_sdpa").attention.default == "sdpa"
    assert of(dit_precision="bf16", plugin="p").model.dtype == "bfloat16"
    with pytest.raises(ConfigError, match="do not fit"):
        of(num_gpus=3, tp_size=2)
    with pytest.raises(ConfigError, match=r"stage_configs is no option here; docs/compat.md"):
        of(stage_configs="x")
    for name, meaning in OPTIONS.items():
        assert bool(meaning.refused) != bool(meaning.about), name
        if meaning.refused:
            with pytest.raises(ConfigError, match=f"{name}='something' is not taken here"):
                of(**{name: "something"})


def test_registrations_are_read_from_the_source() -> None:
    package = package_of(COMPOSED)
    assert {each.name for each in package.entries()} > {"SmallPipeline", "MediumEditPipeline", "FluxTransformer2DModel"}
    assert package.values("MediumEditPipeline")["pipeline_name"] == "ComposedMediumEditPipeline"
    assert package.values("SmallPipelineConfig")["task_type"] == "T2I"
    source = (
        "class A(PipelineConfig): pass\nclass B(PipelineConfig): pass\nclass P(ComposedPipelineBase): pass\n"
        "register_configs(sampling_param_cls=A, pipeline_config_cls=A, hf_model_paths=['org/First'])\n"
        "register_configs(sampling_param_cls=B, pipeline_config_cls=B,"
        " model_detectors=[lambda hf_id: 'second' in hf_id.lower() and not hf_id.startswith('x')])\n"
    )
    two = Package("own", {"own": ast.parse(source)})
    assert two.configs_of("P", ("P", "/models/First"))["pipeline_config_cls"].name == "A"
    assert two.configs_of("P", ("P", "/models/the-second"))["pipeline_config_cls"].name == "B"
    assert two.configs_of("P", ("P", "/models/third")) == {}
    odd = ast.parse(source.replace("'second' in hf_id.lower()", "detect(hf_id)"))
    with pytest.raises(ModelError, match=r"the detector .* cannot be read without running it"):
        Package("own", {"own": odd}).configs_of("P", ("P", "third"))
    with pytest.raises(ModelError, match="EntryClass of own is 'Missing'"):
        list(Package("own", {"own": ast.parse("EntryClass = Missing")}).entries())


def test_a_class_is_the_one_that_its_module_imports_and_not_any_of_that_name() -> None:
    whole = package_of(PLUGIN)  # both guides' pipelines are in it, with classes of the same names
    found = {each.name: each.module for each in whole.entries()}
    own = f"{COMPOSED}.medium_pipeline"
    assert found["MediumEditPipeline"] == own
    assert whole.values("MediumEditPipeline", own)["pipeline_name"] == "ComposedMediumEditPipeline"
    assert whole.configs_of("MediumCombinedPipeline", ("x",), own)["pipeline_config_cls"].name == "MediumPipelineConfig"
    trees = {"p": "from .b import A as B", "p.a": "class A(Base): x = 1", "p.b": "class A: x = 2\nclass C(A): pass"}
    package = Package("p", {name: ast.parse(text) for name, text in trees.items()})
    assert (package.values("B", "p"), package.values("A", "p.a"), package.values("C", "p.b")) == (
        {"x": 2},
        {"x": 1},
        {"x": 2},
    )
    assert package.meant("A", "p") is None


class Encoder(nn.Module):
    def forward(self, pixel_values: torch.Tensor) -> object:
        return type("Made", (), {"last_hidden_state": pixel_values.mean(dim=(2, 3))})


class Pixels(dict):  # type: ignore[type-arg]
    def to(self, device: torch.device) -> Pixels:
        return self


def test_small_parts_do_what_they_say() -> None:
    assert (PRECISION_TO_TYPE["bf16"], DataType.VIDEO.get_default_extension()) == (torch.bfloat16, "mp4")
    assert ModelTaskType.I2V.requires_image_input() and not ModelTaskType.I2V.is_image_gen()
    assert (SamplingParams(num_frames=48).seconds(), SamplingParams(height=2, width=3).output_size_str()) == (2, "3x2")
    with pytest.raises(NotImplementedError, match="postprocess_text_funcs"):
        postprocess_text(None, None)
    arch = VAEConfig()
    arch.update_model_arch({"block_out_channels": [1, 2, 3], "own": 4})
    assert (arch.vae_scale_factor, arch.get_vae_scale_factor(), arch.own) == (4, 4, 4)
    with pytest.raises(ConfigError, match="EncoderConfig has no field 'nothing'"):
        EncoderConfig().update_model_config({"nothing": 1})
    table = {r"^a\.(.*)$": r"b.\1", r"^(.*)\.to_q$": (r"\1.qk", 0, 2), r"^(.*)\.to_k$": (r"\1.qk", 1, 2)}
    one, two = torch.zeros(1, 2), torch.ones(1, 2)
    named = dict(renamed(table, [("a.w", one), ("c.to_k", two), ("c.to_q", one), ("d", two)]))
    assert set(named) == {"b.w", "c.qk", "d"} and named["c.qk"].tolist() == [[0, 0], [1, 1]]
    with pytest.raises(ModelError, match=r"of what makes up c\.qk not every tensor is stored"):
        list(renamed(table, [("c.to_k", two)]))
    found = VerificationResult().add_check("height", 12, StageValidators.positive_int_divisible(8))
    assert not found.is_valid() and found.get_failed_fields() == ["height"] and "12" in found.get_failure_summary()
    place = Surroundings(torch.device("cpu"), torch.float32, Mesh.single(), args())
    with within(place):
        assert get_global_server_args() is place.config
        assert distributed.get_local_torch_device().type == "cpu"
        assert (distributed.get_sp_world_size(), distributed.get_tp_world_size(), distributed.get_tp_rank()) == (
            1,
            1,
            0,
        )
        with set_forward_context(current_timestep=3):
            assert get_forward_context().current_timestep == 3
        assert get_forward_context().current_timestep == -1
        batch = InputValidationStage()(Req(prompt="a"), place.config)
        assert (batch.width, batch.height, batch.do_classifier_free_guidance) == (1280, 720, False)
        seen = ImageEncodingStage(lambda images, return_tensors: Pixels(pixel_values=images), Encoder())
        with pytest.raises(StageVerificationError, match="before ImageEncodingStage: pil_image"):
            seen(Req(), place.config)
        shown = seen(Req(pil_image=torch.ones(1, 3, 2, 2)), place.config)
        assert [each.shape for each in shown.image_embeds] == [(1, 3)]
        with pytest.raises(ModelError, match="has no image_encoder"):
            ImageEncodingStage(None, text_encoder=1)(Req(pil_image=1), place.config)
    q = torch.randn(1, 5, 2, 4)
    expected = nn.functional.scaled_dot_product_attention(*[q.transpose(1, 2)] * 3).transpose(1, 2)
    torch.testing.assert_close(LocalAttention(2, 4)(q, q, q), expected)
