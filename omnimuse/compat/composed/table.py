"""Every name of SGLang's guide: where it is documented, what ours does and the test of it, or why it is refused.

`docs/compat.md` shows it (`tools/compat_page.py`), and a module that is asked for a refused name says the reason.
"""

from __future__ import annotations

from omnimuse.compat.contract.table import Known, Refused

ROOT = "sglang.multimodal_gen"
GUIDE, FILES, PAGES = "SGLang's guide", "SGLang's model files", "SGLang's pages"

C, R = f"{ROOT}.configs", f"{ROOT}.runtime"
CORE, OLD = f"{R}.pipelines_core", f"{R}.pipelines"
STAGES = f"{CORE}.stages"

MAIN, OWN, NAMES = (f"tests/compat/test_sglang{name}.py" for name in ("", "_stages", "_names"))
DRAWS = f"{MAIN}::test_alone_and_in_company_it_draws_what_diffusers_draws"
ALIKE = f"{MAIN}::test_outputs_of_one_size_share_every_call_of_the_network"
STEPS = f"{MAIN}::test_its_stages_are_told_one_by_one_and_every_step_of_its_loop"
SCRIPT = f"{MAIN}::test_a_script_of_the_guide_draws_the_same"
DEFAULTS = f"{MAIN}::test_omni_draws_the_same_with_the_defaults_of_the_pipeline"
CHANGED = f"{OWN}::test_it_draws_what_diffusers_draws_alone_and_in_company"
SMALL = f"{NAMES}::test_small_parts_do_what_they_say"
READ = f"{NAMES}::test_registrations_are_read_from_the_source"
FIELDS = f"{NAMES}::test_every_documented_sampling_field_is_mapped_or_refused"
WORN = "tests/compat/test_adapters.py::test_the_generator_of_the_guide_sets_them"
APART = "tests/compat/test_sglang_scripts.py::test_sites_say_which_tokens_all_ranks_have"
RANKS = "tests/compat/test_sglang_scripts.py::test_two_ranks_draw_what_one_draws"
OPTION = f"{NAMES}::test_options_mean_what_they_mean_there"


def _same(modules: tuple[str, ...], names: tuple[str, ...], where: str, does: str, test: str) -> tuple[Known, ...]:
    return tuple(Known(module, name, where, does, test) for module in modules for name in names)


KNOWN: tuple[Known, ...] = (
    Known(ROOT, "DiffGenerator", GUIDE, "an engine of ours for one model, with SGLang's options", SCRIPT),
    Known(ROOT, "PipelineConfig", GUIDE, "the facts of a pipeline, and its small functions", DRAWS),
    Known(
        ROOT, "SamplingParams", GUIDE, "what a request chose, and by its defaults what a model's requests do", DEFAULTS
    ),
    Known(f"{R}.entrypoints.diffusion_generator", "DiffGenerator", PAGES, "the same", SCRIPT),
    Known(
        f"{ROOT}.registry",
        "_register_configs",
        GUIDE,
        "which configurations a pipeline has, read from the source",
        DRAWS,
    ),
    Known(f"{ROOT}.registry", "register_configs", FILES, "its newer name", READ),
    Known(f"{ROOT}.utils", "PRECISION_TO_TYPE", FILES, "number formats by their names", SMALL),
    Known(
        f"{CORE}.composed_pipeline_base",
        "ComposedPipelineBase",
        GUIDE,
        "`create_pipeline_stages` composes it; `add_stage`, `add_stages`, `get_module` and `add_standard_*` are there",
        DRAWS,
    ),
    *_same((f"{OLD}.composed_pipeline_base", OLD, CORE), ("ComposedPipelineBase",), GUIDE, "the same", SMALL),
    *_same(
        (f"{CORE}.lora_pipeline", CORE, OLD),
        ("LoRAPipeline",),
        FILES,
        "a mark: networks of every composed pipeline wear adapters",
        WORN,
    ),
    Known(
        f"{STAGES}.base",
        "PipelineStage",
        GUIDE,
        "one stage of ours, with its two checks; each output has its own",
        CHANGED,
    ),
    Known(STAGES, "PipelineStage", GUIDE, "the same", CHANGED),
    Known(f"{STAGES}.base", "StageParallelismType", FILES, "a word; every rank runs every stage", SMALL),
    Known(f"{STAGES}.base", "StageVerificationError", FILES, "a ModelError of ours: it fails the request", SMALL),
    *_same(
        (f"{STAGES}.validators", f"{OLD}.stages.validators"),
        ("StageValidators", "VerificationResult"),
        FILES,
        "checks of what a stage takes and gives; they are always made",
        SMALL,
    ),
    Known(
        STAGES, "InputValidationStage", GUIDE, "a stage of ours: settles sizes; the door has checked the rest", STEPS
    ),
    Known(STAGES, "TextEncodingStage", GUIDE, "a stage of ours: every text encoder, as `pipeline_config` says", STEPS),
    Known(
        STAGES,
        "ImageEncodingStage",
        GUIDE,
        "a stage of ours: an image encoder; with a text encoder override `forward`",
        SMALL,
    ),
    Known(STAGES, "ImageVAEEncodingStage", GUIDE, "a stage of ours: the picture as latents", CHANGED),
    Known(STAGES, "ConditioningStage", GUIDE, "a stage of ours: checks the prompts; subclasses change them", CHANGED),
    Known(
        STAGES, "TimestepPreparationStage", GUIDE, "a stage of ours: the schedule, by the output's own scheduler", STEPS
    ),
    Known(STAGES, "LatentPreparationStage", GUIDE, "a stage of ours: noise of the output's own generator", STEPS),
    Known(
        STAGES,
        "DenoisingStage",
        GUIDE,
        "our loop: the engine takes its steps, for several outputs in one call of the network; its hooks are honoured",
        ALIKE,
    ),
    Known(STAGES, "DecodingStage", GUIDE, "a stage of ours: pixels in [0, 1]", STEPS),
    *(
        Known(f"{STAGES}.{module}", name, FILES, "the same as in `stages`", SMALL)
        for module, name in (
            *(("input_validation", "InputValidationStage"), ("text_encoding", "TextEncodingStage")),
            *(("image_encoding", "ImageEncodingStage"), ("image_encoding", "ImageVAEEncodingStage")),
            *(("conditioning", "ConditioningStage"), ("timestep_preparation", "TimestepPreparationStage")),
            *(("latent_preparation", "LatentPreparationStage"), ("denoising", "DenoisingStage")),
            ("decoding", "DecodingStage"),
        )
    ),
    *_same(
        (f"{OLD}.stages",),
        (
            *("ConditioningStage", "DecodingStage", "DenoisingStage", "ImageEncodingStage", "ImageVAEEncodingStage"),
            *("InputValidationStage", "LatentPreparationStage", "PipelineStage", "TextEncodingStage"),
            "TimestepPreparationStage",
        ),
        GUIDE,
        "an older place of the same",
        SMALL,
    ),
    *_same((f"{OLD}.stages.base",), ("PipelineStage", "StageParallelismType"), GUIDE, "the same", SMALL),
    Known(f"{CORE}.schedule_batch", "Req", FILES, "one output on its way through the stages", DRAWS),
    Known(f"{CORE}.schedule_batch", "OutputBatch", FILES, "what the last stage gives", CHANGED),
    Known(f"{CORE}.schedule_batch", "ForwardBatch", FILES, "an older name of `Req`", SMALL),
    *_same(
        (f"{OLD}.schedule_batch", f"{OLD}.pipeline_batch_info"),
        ("Req", "OutputBatch", "ForwardBatch"),
        FILES,
        "an older place of the same",
        SMALL,
    ),
    *_same((CORE, OLD), ("Req", "OutputBatch"), FILES, "the same", SMALL),
    Known(f"{R}.server_args", "ServerArgs", GUIDE, "what was chosen when the engine started, to be looked at", DRAWS),
    Known(f"{R}.server_args", "get_global_server_args", FILES, "the same, within a call", SMALL),
    *_same(
        (f"{C}.pipeline_configs.base", f"{C}.pipeline_configs", f"{C}.pipelines.base", f"{C}.pipelines"),
        ("PipelineConfig", "ModelTaskType"),
        GUIDE,
        "the facts of a pipeline; `task_type`, or its older marks, says what it makes",
        DRAWS,
    ),
    Known(f"{C}.pipeline_configs.base", "preprocess_text", FILES, "a prompt as it is", DRAWS),
    Known(f"{C}.pipeline_configs.base", "postprocess_text", FILES, "none: a pipeline gives its own", SMALL),
    *_same(
        (f"{C}.sample.sampling_params", f"{C}.sample.base", f"{C}.sample"),
        ("SamplingParams", "DataType"),
        GUIDE,
        "what a request chose; a subclass has its pipeline's defaults and fields",
        FIELDS,
    ),
    *_same(
        (f"{C}.models",),
        (
            *("ArchConfig", "DiTArchConfig", "DiTConfig", "EncoderArchConfig", "EncoderConfig", "ModelConfig"),
            *("VAEArchConfig", "VAEConfig"),
        ),
        FILES,
        "what a component is built from: its `config.json`, and more",
        DRAWS,
    ),
    *(
        Known(f"{C}.models.{module}.base", name, FILES, "the same", SMALL)
        for module, name in (
            *(("dits", "DiTArchConfig"), ("dits", "DiTConfig"), ("vaes", "VAEArchConfig"), ("vaes", "VAEConfig")),
            *(("encoders", "TextEncoderArchConfig"), ("encoders", "TextEncoderConfig")),
            *(("encoders", "ImageEncoderConfig"), ("encoders", "BaseEncoderOutput")),
        )
    ),
    *_same(
        (f"{R}.models.dits.base",),
        ("BaseDiT", "CachableDiT"),
        GUIDE,
        "a denoising network of a plugin's own; `param_names_mapping` names its weights",
        DRAWS,
    ),
    Known(
        f"{R}.layers.attention",
        "USPAttention",
        FILES,
        "an attention site of ours whose tokens ranks share, but for `num_replicated_prefix` or `_suffix`",
        RANKS,
    ),
    Known(f"{R}.layers.attention", "UlyssesAttention", FILES, "the same, but for `replicated_q` and its like", APART),
    Known(f"{R}.layers.attention", "LocalAttention", FILES, "one whose tokens are never shared", SMALL),
    *_same(
        (f"{R}.layers.linear",),
        (
            *("ReplicatedLinear", "ColumnParallelLinear", "RowParallelLinear", "MergedColumnParallelLinear"),
            *("QKVParallelLinear", "LinearBase"),
        ),
        FILES,
        "the linear layers of `vllm`, of which ranks have shares",
        DRAWS,
    ),
    Known(f"{R}.layers.layernorm", "RMSNorm", FILES, "the one of `vllm`", DRAWS),
    *_same(
        (f"{R}.distributed",),
        ("get_local_torch_device", "get_tp_world_size", "get_tp_rank"),
        FILES,
        "the device, and the ranks, within a call",
        SMALL,
    ),
    *_same(
        (f"{R}.distributed",),
        ("get_sp_world_size", "get_sp_parallel_rank", "sequence_model_parallel_all_gather"),
        FILES,
        "the ranks that share tokens, and what all of them have",
        RANKS,
    ),
    *_same(
        (f"{R}.managers.forward_context",),
        ("set_forward_context", "get_forward_context"),
        FILES,
        "the number of the step, while a network is called",
        SMALL,
    ),
    Known(f"{R}.utils.logging_utils", "init_logger", FILES, "Python's logger", SMALL),
)

_DISTILLED = "its loop draws noise anew between steps of a distilled model; write it as a DenoisingStage with hooks"
_FAMILY = "a family has its configuration in a plugin, or is one of ours and needs none"

REFUSED: tuple[Refused, ...] = (
    Refused(STAGES, "DmdDenoisingStage", GUIDE, _DISTILLED),
    Refused(
        STAGES, "CausalDMDDenoisingStage", GUIDE, f"{_DISTILLED}; chunks that see earlier ones are our causal families'"
    ),
    Refused(STAGES, "EncodingStage", FILES, "use ImageVAEEncodingStage"),
    Refused(STAGES, "StepvideoPromptEncodingStage", FILES, _FAMILY),
    Refused(f"{C}.pipeline_configs", "*", FILES, _FAMILY),
    Refused(f"{C}.pipelines", "*", FILES, _FAMILY),
    Refused(f"{C}.sample", "*", FILES, _FAMILY),
    Refused(f"{R}.models.dits", "*", GUIDE, "a plugin has its networks, and a checkpoint names those of diffusers"),
    Refused(f"{ROOT}.registry", "get_model_info", FILES, "a checkpoint's class name finds its pipeline"),
)
