"""The table of the contract's names: each is here or refused with its reason, and each row's test exists."""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import nn

from omnimuse.compat.contract import entries
from omnimuse.compat.contract.entries import Entry
from omnimuse.compat.contract.names import UnknownAttributeError, UnknownModuleError, UnknownNameError
from omnimuse.compat.contract.source import read_class
from omnimuse.compat.contract.surroundings import Surroundings, within
from omnimuse.compat.contract.table import NAMES
from omnimuse.compat.tables import Argument, Known, Refused
from omnimuse.compat.vllm import distributed
from omnimuse.compat.vllm.logger import init_logger
from omnimuse.compat.vllm.model_executor.layers.activation import get_act_fn
from omnimuse.compat.vllm.model_executor.layers.conv import Conv3dLayer
from omnimuse.compat.vllm.model_executor.layers.linear import ReplicatedLinear
from omnimuse.compat.vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from omnimuse.compat.vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from omnimuse.compat.vllm.model_executor.models.transformers.utils import init_on_device_without_buffers
from omnimuse.compat.vllm.model_executor.models.utils import maybe_prefix
from omnimuse.compat.vllm.model_executor.utils import set_weight_attrs
from omnimuse.compat.vllm.transformers_utils.config import get_hf_file_to_dict
from omnimuse.compat.vllm.triton_utils import HAS_TRITON, tl, triton
from omnimuse.compat.vllm_omni import logger as omni_logger
from omnimuse.compat.vllm_omni import register
from omnimuse.compat.vllm_omni.diffusion import forward_context, model_metadata, registry
from omnimuse.compat.vllm_omni.diffusion.attention.backends.utils import fa
from omnimuse.compat.vllm_omni.diffusion.cache.base import CachedTransformer
from omnimuse.compat.vllm_omni.diffusion.config import (
    get_current_diffusion_config,
    get_current_diffusion_config_or_none,
    set_current_diffusion_config,
)
from omnimuse.compat.vllm_omni.diffusion.data import DiffusionOutput
from omnimuse.compat.vllm_omni.diffusion.distributed import parallel_state
from omnimuse.compat.vllm_omni.diffusion.distributed.autoencoders.distributed_vae_executor import DistributedVaeMixin
from omnimuse.compat.vllm_omni.diffusion.distributed.cfg_parallel import CFGParallelMixin
from omnimuse.compat.vllm_omni.diffusion.distributed.hsdp_utils import is_transformer_block_module
from omnimuse.compat.vllm_omni.diffusion.distributed.sp_plan import SequenceParallelInput, SequenceParallelOutput
from omnimuse.compat.vllm_omni.diffusion.distributed.sp_sharding import sp_gather, sp_shard, sp_shard_with_padding
from omnimuse.compat.vllm_omni.diffusion.layers import fused_qk_norm_rope, fused_qk_rope
from omnimuse.compat.vllm_omni.diffusion.layers.fourier import GaussianFourierProjection
from omnimuse.compat.vllm_omni.diffusion.layers.rope import RotaryEmbedding, apply_rope_to_qk
from omnimuse.compat.vllm_omni.diffusion.model_loader.hub_prefetch import (
    from_pretrained_with_prefetch,
    prefetch_subfolders,
)
from omnimuse.compat.vllm_omni.diffusion.model_loader.utils import download_weights_from_hf_specific
from omnimuse.compat.vllm_omni.diffusion.models.interface import SupportsComponentDiscovery
from omnimuse.compat.vllm_omni.diffusion.request import OmniDiffusionRequest, resolve_video_num_frames
from omnimuse.compat.vllm_omni.diffusion.utils.flow_matching import safe_linalg_solve
from omnimuse.compat.vllm_omni.diffusion.utils.prompt_utils import validate_prompt_sequence_lengths
from omnimuse.compat.vllm_omni.diffusion.utils.size_utils import normalize_min_aligned_size
from omnimuse.compat.vllm_omni.diffusion.worker.request_batch import (
    DiffusionRequestBatch,
    split_diffusion_output_by_request,
)
from omnimuse.compat.vllm_omni.errors import OmniClientError
from omnimuse.compat.vllm_omni.inputs.data import OmniDiffusionSamplingParams
from omnimuse.compat.vllm_omni.platforms import current_omni_platform
from omnimuse.compat.vllm_omni.quantization import build_quant_config
from omnimuse.compat.vllm_omni.quantization.component_config import resolve_component_quant_config, safe_quant_config
from omnimuse.core.config import Config, ModelConfig, ParallelConfig
from omnimuse.core.errors import ConfigError, ModelError, RequestError
from omnimuse.parallel.mesh import Mesh
from omnimuse.worker.find import find
from tests.compat.running import named_in, taken
from tools.compat_page import PAGE, page

ROOT = Path(__file__).resolve().parent.parent.parent


DOCUMENTED = """
Omni AsyncOmni OmniDiffusionSamplingParams OmniDiffusionRequest OmniRequestOutput OmniDiffusionConfig TransformerConfig
DiffusionParallelConfig DiffusionOutput __init__ forward weights_sources DiffusersPipelineLoader load_weights
AutoWeightsLoader default_weight_loader stacked_params_mapping _DIFFUSION_MODELS _DIFFUSION_PRE_PROCESS_FUNCS
_DIFFUSION_POST_PROCESS_FUNCS register Attention AttentionMetadata ColumnParallelLinear RowParallelLinear
QKVParallelLinear MergedColumnParallelLinear ReplicatedLinear RMSNorm RotaryEmbedding AdaLayerNorm CFGParallelMixin
predict_noise combine_cfg_noise _sp_plan SequenceParallelInput SequenceParallelOutput _repeated_blocks
_layerwise_offload_blocks_attrs _hsdp_shard_conditions prepare_encode denoise_step step_scheduler post_decode
EXTRACTOR_REGISTRY CacheDiTBackend CUSTOM_DIT_ENABLERS DiffusionPipelineProfilerMixin SupportImageInput
SupportAudioInput get_local_device get_transformer_config_kwargs init_logger download_weights_from_hf_specific
"""
"""What the documents name, beside the arguments of these and what is chosen by name (`settings.py`)."""

GIVEN = """
role role_category skip_sequence_parallel split_output predict_noise_maybe_with_cfg scheduler_step_maybe_with_cfg
ComponentSource stage_durations
"""
"""Of these, arguments and methods that the documents name, too."""


def test_what_the_documents_name_has_a_row_each() -> None:
    rows = {row.name for row in (*NAMES.known, *NAMES.declared)}
    assert sorted(set(DOCUMENTED.split()) - rows) == []
    given = {word for row in NAMES.arguments for word in (*row.owner.split("."), row.name)}
    assert sorted(set(GIVEN.split()) - given) == []


@pytest.mark.parametrize("row", [*NAMES.known, *NAMES.declared], ids=lambda row: f"{row.module}.{row.name}")
def test_every_name_is_there_and_its_test_exists(row: Known) -> None:
    assert " " in row.module or hasattr(import_module(f"omnimuse.compat.{row.module}"), row.name)
    path, _, name = row.test.partition("::")
    assert name in named_in(ROOT / path)


@pytest.mark.parametrize("row", NAMES.refused, ids=lambda row: f"{row.module}.{row.name}")
def test_every_refused_name_says_why(row: Refused) -> None:
    name = "Anything" if row.name == "*" else row.name
    with pytest.raises((UnknownNameError, UnknownModuleError)) as caught:
        exec(f"from omnimuse.compat.{row.module} import {name}")
    assert row.why and row.why in str(caught.value)


def test_who_asks_every_module_for_a_name_is_told_that_it_is_not_there() -> None:
    """As pickling does, of what does not say where it is from, and so the compiler for the key of its cache."""
    for row in (*NAMES.known, *NAMES.refused):
        with suppress(UnknownModuleError):
            module = import_module(f"omnimuse.compat.{row.module.split()[0]}")
            assert not hasattr(module, "torch_")


@pytest.mark.parametrize("row", NAMES.arguments, ids=lambda row: f"{row.owner}.{row.name}")
def test_every_argument_is_taken(row: Argument) -> None:
    assert row.name in taken(import_module(f"omnimuse.compat.{row.module}"), row.owner)


def test_no_cell_of_the_page_is_empty() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" |")] for line in lines if line.startswith("|")]
    assert len(rows) > 400
    checked = [
        row for row in rows if row[1:2] != ["yes"]
    ]  # of a pipeline that was asked nothing otherwise, nothing is said
    assert not [row for row in checked if not all(row)]


def test_the_page_is_made_of_the_table() -> None:
    written = PAGE.read_text(encoding="utf-8")
    assert page(written) == written, "run `make compat`"


def test_a_name_and_an_attribute_that_nobody_knows_name_the_table() -> None:
    with pytest.raises(ImportError, match=r"has no 'Nothing' here; docs/compat.md"):
        from omnimuse.compat.vllm_omni.diffusion.data import Nothing  # noqa: F401
    request = OmniDiffusionRequest(["a"], OmniDiffusionSamplingParams())
    for owner in (request, request.sampling_params):
        assert not hasattr(owner, "nothing")
        with pytest.raises(UnknownAttributeError, match=r"has no 'nothing' here; docs/compat.md"):
            owner.nothing  # noqa: B018


@pytest.mark.parametrize("name", ["vllm_omni.nothing", "vllm_omni.diffusion.hooks.unknown", "vllm.nothing"])
def test_a_module_that_nobody_knows_names_the_table(name: str) -> None:
    top = ".".join(name.split(".")[: 3 if "hooks" in name else 2])
    with pytest.raises(UnknownModuleError, match=rf"there is no {top} here; docs/compat.md"):
        import_module(f"omnimuse.compat.{name}")


def test_a_pipeline_is_registered_by_a_call() -> None:
    register("TestOnlyPipeline", "tests.compat.nowhere.pipeline", "Own", pre_process="before", tasks="text-to-image")
    try:
        assert registry._DIFFUSION_MODELS["TestOnlyPipeline"] == ("nowhere", "pipeline", "Own")
        assert registry._DIFFUSION_PRE_PROCESS_FUNCS["TestOnlyPipeline"] == "before"
        register("TestOnlyPipeline", "tests.compat.nowhere.pipeline", "Own")
        with pytest.raises(ConfigError, match="registered twice"):
            register("TestOnlyPipeline", "elsewhere", "Own")
        with pytest.raises(ConfigError, match=r"task='drawing' of .* is not known"):
            register("OtherPipeline", "elsewhere", tasks="drawing")
    finally:
        del entries.ENTRIES["TestOnlyPipeline"]


def test_a_plugin_that_is_not_there_or_brings_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="plugin no_such_package cannot be imported"):
        entries.load(["no_such_package"])
    with pytest.raises(ConfigError, match="registers no pipeline of its own"):
        entries.load(["tests.docs"])


def test_a_plugin_that_lacks_what_it_needs_says_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needy_plugin.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="needs more than is here: No module named 'no_such_library'"):
        entries.load(["needy_plugin"])


def test_an_installed_package_is_found_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site, folder = tmp_path / "site", tmp_path / "model"
    files = {
        "own_plugin/__init__.py": "",
        "own_plugin/registry.py": '_DIFFUSION_MODELS = {"InstalledPipeline": ("", "drawing", "Drawing")}',
        "own_plugin/drawing.py": "class Drawing(nn.Module):\n    def forward(self, req): return req.sampling.seed\n",
        "own_plugin-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: own-plugin\nVersion: 1\n",
        "own_plugin-1.dist-info/entry_points.txt": "[omnimuse.families]\nown = own_plugin\n",
    }
    for name, text in files.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "InstalledPipeline"}')
    monkeypatch.syspath_prepend(site)
    try:
        spec = find(Config(ModelConfig(str(folder)))).spec
    finally:
        entries.ENTRIES.pop("InstalledPipeline", None)
    assert (spec.arch, spec.summary) == ("InstalledPipeline", "Drawing of own_plugin.drawing")


def test_marks_of_a_class_are_read_from_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "class Base(nn.Module, SupportImageInput):\n    def denoise_step(self): ...\n"
    text += "class Own(Base, x.SupportAudioInput, SupportAudioOutput):\n"
    text += "    def forward(self, req):\n        return req.sampling.strength\n"
    (tmp_path / "marked_pipeline.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    found = read_class(Entry("Own", "marked_pipeline", "Own"))
    assert (found.takes_pictures, found.takes_sounds, found.gives_sounds, found.steps) == (True, True, True, False)
    assert found.reads("strength")
    assert not found.reads("height")
    assert "marked_pipeline" not in sys.modules
    with pytest.raises(ModelError, match="has no class Other"):
        read_class(Entry("Own", "marked_pipeline", "Other"))


def test_what_code_asks_of_its_surroundings_is_answered_within_a_call() -> None:
    mesh = Mesh.planned(ParallelConfig(tensor=2, ulysses=2, cfg=2), rank=7)
    with within(Surroundings(torch.device("cpu"), torch.float32, mesh, "the config", 3)):
        assert distributed.get_tensor_model_parallel_world_size() == 2
        assert distributed.get_tensor_model_parallel_rank() == 1
        assert parallel_state.get_sequence_parallel_world_size() == 2
        assert parallel_state.get_sp_group().rank_in_group == 1
        assert parallel_state.get_classifier_free_guidance_rank() == 1
        assert parallel_state.get_cfg_group().world_size == 2
        assert forward_context.is_forward_context_available()
        forward_context.set_forward_context_denoise_step_idx(4)
        context = forward_context.get_forward_context()
        assert (context.omni_diffusion_config, context.denoise_step_idx) == ("the config", 4)
        assert current_omni_platform.is_cpu()
        assert current_omni_platform.get_torch_device() == torch.device("cpu")
    single = Surroundings(torch.device("cpu"), torch.float32, Mesh.single(), None)
    with within(single):
        x = torch.ones(2, 3)
        assert torch.equal(distributed.tensor_model_parallel_all_reduce(x.clone()), x)
        assert torch.equal(distributed.tensor_model_parallel_all_gather(x), x)
    assert not forward_context.is_forward_context_available()
    with pytest.raises(ModelError, match="get_forward_context was called outside of an engine"):
        forward_context.get_forward_context()


def test_small_parts_do_what_they_say(caplog: pytest.LogCaptureFixture) -> None:
    assert issubclass(OmniClientError, RequestError)
    assert (HAS_TRITON, triton, tl) == (False, None, None)
    assert SequenceParallelInput(1, 3).split_dim == SequenceParallelOutput(1, 3).gather_dim == 1
    assert is_transformer_block_module("transformer_blocks.3", nn.Identity())
    assert not is_transformer_block_module("transformer_blocks.3.attn", nn.Identity())
    batch = DiffusionRequestBatch([OmniDiffusionRequest([word], OmniDiffusionSamplingParams()) for word in "ab"])
    split = split_diffusion_output_by_request(DiffusionOutput(torch.arange(4)), batch, num_outputs_per_prompt=2)
    assert [each.output.tolist() for each in split] == [[0, 1], [2, 3]]
    assert prefetch_subfolders("m", ["vae"], local_files_only=True) is None  # type: ignore[func-returns-value]
    made = from_pretrained_with_prefetch(lambda model, **kw: (model, kw), "m", subfolder="vae", prefetch_list=["vae"])
    assert made == ("m", {"subfolder": "vae"})
    assert Path(download_weights_from_hf_specific("omnimuse/shapes", None, ["*"])).is_dir()
    weight = torch.ones(1)
    set_weight_attrs(weight, {"own": 1})
    with pytest.raises(ValueError, match="has an attribute 'own' already"):
        set_weight_attrs(weight, {"own": 2})
    with pytest.raises(ModelError, match="weights are quantized by the build"):
        ReplicatedLinear(1, 1, quant_config=QuantizationConfig())
    assert VocabParallelEmbedding(4, 2)(torch.tensor([1])).shape == (1, 2)
    assert isinstance(Conv3dLayer(1, 1, 1), nn.Conv3d)
    q, turn = torch.ones(1, 2, 1, 4), (torch.zeros(2, 2), torch.ones(2, 2))
    assert torch.equal(*apply_rope_to_qk(RotaryEmbedding(), q, q, turn))
    _small_parts_of_published_files()
    logger = init_logger("contract")
    for _ in range(2):
        logger.warning_once("say %s", "it")
    assert [record.getMessage() for record in caplog.records] == ["say it"]


def test_what_single_families_import_does_what_it_says(tmp_path: Path) -> None:
    assert (fa.flash_attn_func, fa.flash_attn_varlen_func, model_metadata.ANY_MAX_INPUT_IMAGES) == (None, None, 4)
    asked = {"default_num_frames": 81, "is_dummy_run": False}
    assert [resolve_video_num_frames(count, **asked) for count in (None, 1, 5)] == [81, 81, 5]
    (tmp_path / "config.json").write_text('{"width": 4}')
    assert get_hf_file_to_dict("config.json", tmp_path) == {"width": 4}
    assert get_hf_file_to_dict("other.json", tmp_path) is None
    head = ParallelLMHead(3, 2, bias=True)
    assert [list(each.shape) for each in head.parameters()] == [[3, 2], [3]]
    with pytest.raises(ModelError, match="logits are not computed here"):
        head(torch.zeros(1, 2))
    assert get_current_diffusion_config_or_none() is None
    second = Mesh.planned(ParallelConfig(ulysses=2), rank=1)
    with within(Surroundings(torch.device("cpu"), torch.float32, second, "outer")):
        with set_current_diffusion_config("inner"):  # type: ignore[arg-type]
            assert get_current_diffusion_config() == "inner"
        assert get_current_diffusion_config() == "outer"
        assert sp_shard(torch.arange(4), 0).tolist() == [2, 3]
        assert [each.tolist() for each in sp_shard_with_padding(torch.arange(3), 0)[:1]] == [[2, 0]]
        with pytest.raises(ModelError, match="3 tokens cannot be shared evenly by 2 ranks"):
            sp_shard(torch.arange(3), 0)
    assert sp_gather(torch.arange(3), 0).tolist() == [0, 1, 2]


def test_a_network_may_give_the_record_of_diffusers() -> None:
    class Guided(CFGParallelMixin):
        def __init__(self, network: nn.Module) -> None:
            self.transformer = network

    class Network(nn.Module):
        def forward(self, x: float) -> Transformer2DModelOutput:
            return Transformer2DModelOutput(sample=torch.tensor([x]))

    found = Guided(Network()).predict_noise_maybe_with_cfg(True, 3.0, {"x": 2.0}, {"x": 1.0}, cfg_normalize=False)
    assert found.tolist() == [4.0]  # type: ignore[union-attr]


def test_a_batch_of_requests_puts_together_what_they_chose() -> None:
    generators = [torch.Generator(), torch.Generator()]
    prompts = [{"prompt": "a", "embeds": torch.zeros(3)}, {"additional_information": {"other": [torch.ones(3)]}}]
    batch = DiffusionRequestBatch(
        [
            OmniDiffusionRequest([prompt], OmniDiffusionSamplingParams(generator=each, latents=torch.ones(1, 2)), ["r"])  # type: ignore[list-item]
            for prompt, each in zip(prompts, generators, strict=True)
        ]
    )
    assert batch.collate_request_generators(2, None) == [generators[0]] * 2 + [generators[1]] * 2
    latents = batch.collate_request_tensors("latents", None)
    assert latents is not None
    assert latents.shape == (2, 2)
    usual = torch.zeros(1)
    found = batch.collate_prompt_field_map(batch.prompts, {"e": usual, "x": usual}, {"e": ("embeds", "other")})
    assert found["x"] is usual
    assert found["e"] is not None
    assert found["e"].tolist() == [[0.0] * 3, [1.0] * 3]
    assert batch.collate_request_tensors("image_latent", usual) is usual
    batch.requests[0].sampling_params.latents = None
    with pytest.raises(ValueError, match="some requests of a batch have a latents and some have none"):
        batch.collate_request_tensors("latents", None)
    assert not batch.is_dummy_run()
    assert not batch.requests[0].is_dummy_run()


def _what_is_there_under_many_names() -> None:
    two = import_module("omnimuse.compat.vllm_omni.diffusion.layers.some_select01_modulation")
    params = torch.arange(12.0).reshape(2, 6)  # of one row: shifts 0 1, scales 2 3, gates 4 5, and others
    scale, shift, gate = two.select01_modulation_native(params, torch.tensor([[0, 1]]))
    assert [each.tolist() for each in (scale, shift, gate)] == [
        [[[2, 3], [8, 9]]],
        [[[0, 1], [6, 7]]],
        [[[4, 5], [10, 11]]],
    ]
    assert not two.can_use_some_select01_triton(params)
    with pytest.raises(ModelError, match="call them only where"):
        two.fused_residual_layernorm_select01()
    mixin = import_module("omnimuse.compat.vllm_omni.diffusion.lora.loader").SomeLoraLoaderMixin
    with pytest.raises(ModelError, match="requests ask for them"):
        mixin().load_lora_weights("x")
    mask, chat = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]), torch.ones(1, 2, dtype=torch.long)
    longest = {"supported_max_sequence_length": 9, "baseline_attention_mask": chat, "error_context": "with its chat"}
    validate_prompt_sequence_lengths(mask, max_sequence_length=3, **longest)
    with pytest.raises(ValueError, match=r"prompt has 3 tokens with its chat, and max_sequence_length=2; .* up to 9"):
        validate_prompt_sequence_lengths(mask, max_sequence_length=2, **longest)


def _small_parts_of_published_files() -> None:
    assert normalize_min_aligned_size(40, 7, 16) == (32, 16)
    assert fused_qk_norm_rope.fused_qk_norm_rope_min_tokens(512) == 512
    assert not fused_qk_rope.fused_qk_rope_supported(1)
    for kernel in (fused_qk_norm_rope.fused_qk_norm_rope, fused_qk_rope.fused_qk_rope):
        with pytest.raises(ModelError, match="a kernel that is not here"):
            kernel()
    for name in ("", "Wan", "QwenImage"):
        place = "omnimuse.compat.vllm_omni.diffusion.distributed.autoencoders.autoencoder_kl"
        module = import_module(place + (f"_{name.lower()}" if name else ""))
        kind = getattr(module, f"DistributedAutoencoderKL{name}")
        assert issubclass(kind, getattr(diffusers, f"AutoencoderKL{name}"))
        assert issubclass(kind, DistributedVaeMixin)
    _what_is_there_under_many_names()
    assert isinstance(get_act_fn("gelu_pytorch_tanh")(torch.ones(1)), torch.Tensor)
    assert (maybe_prefix("", "b"), maybe_prefix("a", "b")) == ("b", "a.b")
    assert torch.equal(safe_linalg_solve(2 * torch.eye(2), torch.ones(2, 1)), torch.full((2, 1), 0.5))
    with init_on_device_without_buffers("meta"):
        norm = nn.BatchNorm1d(2)
    assert norm.weight.is_meta
    assert norm.running_mean is not None
    assert not norm.running_mean.is_meta
    assert not nn.Linear(1, 1).weight.is_meta
    with pytest.raises(ModelError, match="quantization='fp8' is not taken"):
        build_quant_config("fp8")
    assert build_quant_config(None) is None  # type: ignore[func-returns-value]
    assert safe_quant_config(None) is resolve_component_quant_config(None, "transformer") is None
    features = GaussianFourierProjection(in_features=1, embedding_size=2)
    assert torch.equal(features(torch.zeros(3)), torch.tensor([[1.0, 1.0, 0.0, 0.0]] * 3))
    assert omni_logger.init_logger is init_logger
    assert SupportsComponentDiscovery._resident_modules == ()

    class Separate(CachedTransformer, enable_separate_cfg=False):
        pass

    assert (Separate().do_true_cfg, Separate.enable_separate_cfg) == (False, False)
