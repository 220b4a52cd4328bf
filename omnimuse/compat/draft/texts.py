"""The files of a draft, as text: everything that the facts tell, and in the rest what is to be done."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from omnimuse.compat.draft.facts import ModelFacts
from omnimuse.components.two_stream_names import RULES as TWO_STREAMS
from omnimuse.loader.rules import apply_rules

ENTRIES = {"scheduler": "SCHEDULER", "AutoencoderKL": "AUTOENCODER_KL", "Qwen3Model": "QWEN3.encoder"}
"""Components, or their classes, whose entry `omnimuse/components/entries.py` has."""

TINY = {
    "T5EncoderModel": "encoders.t5_encoder(len({tokenizer}))",
    "UMT5EncoderModel": "encoders.umt5_encoder(len({tokenizer}))",
    "CLIPTextModel": "encoders.clip_encoder(len({tokenizer}))",
    "Qwen3Model": "parts.qwen3_encoder(len({tokenizer}), TEXT_WIDTH)",
    "Qwen2_5_VLForConditionalGeneration": "parts.qwen25_vl(len({tokenizer}), TEXT_WIDTH)",
    "AutoencoderKL": "parts.kl_autoencoder({latents})",
    "T5Tokenizer": "encoders.t5_tokenizer()",
    "T5TokenizerFast": "encoders.t5_tokenizer()",
    "CLIPTokenizer": "encoders.clip_tokenizer()",
    "Qwen2Tokenizer": "parts.qwen_tokenizer()",
    "Qwen2TokenizerFast": "parts.qwen_tokenizer()",
}
"""What the suite has small ones of, and how to make them."""

SMALL: tuple[tuple[str, object], ...] = (
    (r"\w+_layers|num_blocks|depth", 2),
    (r"num_attention_heads|num_heads|n_heads|num_kv_heads|num_key_value_heads|n_kv_heads", 2),
    (r"attention_head_dim|head_dim", 16),
    (r"hidden_size|inner_dim|\w*hidden_dim|dim|width|caption_projection_dim|pooled_projection_dim", 32),
    (r"joint_attention_dim|cross_attention_dim|caption_channels|text_dim|cap_feat_dim", "TEXT_WIDTH"),
)
"""Facts of a network by name, and how small they are in a tiny one."""


def files(name: str, facts: ModelFacts) -> dict[str, str]:
    """Path in the project -> text, of a family called `name`."""
    camel = "".join(word.capitalize() for word in name.split("_"))
    folder = f"omnimuse/models/{name}"
    return {
        f"{folder}/__init__.py": f'"""{camel}, a family of models."""\n',
        f"{folder}/spec.py": _spec(name, camel, facts),
        f"{folder}/transformer.py": _transformer(camel, facts),
        f"{folder}/weights.py": _weights(camel, facts),
        f"{folder}/pipeline.py": _pipeline(name, camel, facts),
        f"tests/checkpoints/{name}.py": _checkpoint(name, camel, facts),
    }


def _default(facts: ModelFacts, name: str, otherwise: Any) -> Any:
    parameter = facts.source.parameters.get(name)
    value = None if parameter is None else parameter.default
    return value if isinstance(value, int | float | str) and not isinstance(value, bool) else otherwise


def _guidance(facts: ModelFacts) -> tuple[str, str]:
    """What of its call says how it is guided: the name of the scale, and the declaration."""
    if "true_cfg_scale" in facts.source.parameters:
        return "true_cfg_scale", 'Guidance(("true_cfg_scale",))'
    return "guidance_scale", "Guidance()"


def _entry(component: str, cls: str) -> str:
    """What is imported for a component that many families have; empty for others."""
    return ENTRIES.get(component, ENTRIES.get(cls, ""))


def _components(name: str, camel: str, facts: ModelFacts) -> str:
    lines = []
    for component, (_, cls) in facts.components.items():
        if component == facts.network:
            lines += [
                f'        "{component}": Component(',
                f'            ("{cls}",),',
                f'            network="omnimuse.models.{name}.transformer:{camel}Transformer",',
                f'            rules="omnimuse.models.{name}.weights:RULES",',
                "        ),",
            ]
        elif entry := _entry(component, cls):
            lines.append(f'        "{component}": {entry},')
        else:
            lines.append(f'        "{component}": Component(("{cls}",)),')
    return "\n".join(lines)


def _spec(name: str, camel: str, facts: ModelFacts) -> str:
    scale, guidance = _guidance(facts)
    longest = _default(facts, "max_sequence_length", 256)
    entries = {_entry(component, cls).split(".")[0] for component, (_, cls) in facts.components.items()} - {""}
    return f'''"""Facts about {camel}, without torch.

Source: the published checkpoint's `model_index.json` and card, and the reference pipeline of diffusers.
"""

from __future__ import annotations

from omnimuse.components.entries import {", ".join(sorted(entries))}
from omnimuse.core.autoencoder import factor
from omnimuse.core.guidance import Guidance
from omnimuse.core.params import DiffusionParams
from omnimuse.core.spec import Component, Configs, Limits, Spec, Variant


def limits(configs: Configs) -> Limits:
    """What a checkpoint can be asked for. To check: what sides must be multiples of, and the largest."""
    return Limits(size_multiple=2 * factor(configs["vae"]), max_side=4096, max_sequence_length={longest})


DEFAULTS = DiffusionParams(
    num_inference_steps={_default(facts, "num_inference_steps", 50)},
    {scale}={float(_default(facts, scale, 1.0))},
    height={_default(facts, "height", 1024)},
    width={_default(facts, "width", 1024)},
    num_outputs_per_prompt=1,
    max_sequence_length={longest},
    output_type="pil",
)

SPEC = Spec(
    arch="{facts.arch}",
    family="{name}",
    summary="{camel}: to be said in one line",
    tasks=("text-to-image",),
    components={{
{_components(name, camel, facts)}
    }},
    defaults=DEFAULTS,
    supported=frozenset({{"{scale}"}}),
    limits=limits,
    guidance={guidance},
    variants=(Variant("{camel}", ("OWNER/{camel}",), DEFAULTS),),
)
'''


def _plain(value: Any) -> Any:
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def _typed(config: Mapping[str, Any]) -> Iterator[str]:
    """The facts of a configuration as fields of a dataclass; what is no plain value is left out."""
    for key, value in config.items():
        value = _plain(value)
        if isinstance(value, tuple):
            yield f"    {key}: tuple[{type(value[0]).__name__ if value else 'int'}, ...] = {value!r}"
        elif isinstance(value, bool | int | float | str):
            yield f"    {key}: {type(value).__name__} = {value!r}".replace("'", '"')
        else:
            yield f"    {key}: Any = {value!r}"


def _written(facts: ModelFacts) -> str:
    """Out of what the network is made."""
    return "a TwoStreamNetwork" if of_two_streams(facts) else "weights.py lists the names of the weights"


def _transformer(camel: str, facts: ModelFacts) -> str:
    return f'''"""The {camel} transformer. The arithmetic is that of diffusers' `{facts.network_class}`.

Letters: R rows, S tokens, D width; c h w latent channels, height, width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from omnimuse.core.errors import ModelError
from omnimuse.layers.network import Network
from omnimuse.layers.stack import BlockStack, Memory
from omnimuse.loader.facts import read_facts


@dataclass(frozen=True)
class {camel}Config:
    """The facts in the checkpoint's {facts.network}/config.json; keep those that the network is built from."""

{chr(10).join(_typed(facts.config))}

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> {camel}Config:
        """Read config.json's contents; raises ModelError for a variant that this file does not compute."""
        return read_facts(cls, config, "{facts.network}/config.json", {{}})


@dataclass(frozen=True)
class {camel}Inputs:
    """One row: noisy latents [c, h, w], the scalar t in (0, 1] (1 is pure noise), the text [S, D] of a branch."""

    latents: Tensor
    t: Tensor
    text: Tensor


class {camel}Transformer(Network):
    """Predicts the velocity from image to noise, one tensor [c, h, w] per row."""

    packing: ClassVar[Literal["varlen"]] = "varlen"

    def __init__(self, config: {camel}Config) -> None:
        super().__init__()
        self.config, self.blocks = config, BlockStack()  # to be written: {_written(facts)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> {camel}Transformer:
        return cls({camel}Config.from_dict(config))

    def stacks(self) -> dict[str, BlockStack]:
        return {{"blocks": self.blocks}}

    def forward(self, rows: Sequence[{camel}Inputs], memories: Sequence[Memory] | None = None) -> list[Tensor]:
        raise ModelError("models/: {camel}Transformer.forward is still to be written; docs/add-a-model.md says how")
'''


def of_two_streams(facts: ModelFacts) -> bool:
    """Whether blocks have the names of those in `components/two_streams.py`."""
    return any(key.startswith("transformer_blocks.0.attn.add_q_proj.") for key in facts.weights)


def _weights(camel: str, facts: ModelFacts) -> str:
    known = TWO_STREAMS if of_two_streams(facts) else ()
    groups: dict[str, tuple[int, ...]] = {}
    for key, shape in facts.weights.items():
        if apply_rules(key, known).name == key:
            groups.setdefault(re.sub(r"\.\d+(?=\.)", ".*", key), shape)
    listed = "\n".join(f"#   {key} {list(shape)}" for key, shape in groups.items())
    blocks = "from omnimuse.components.two_stream_names import RULES as BLOCKS\n" if known else ""
    left = ", less those whose names BLOCKS knows" if known else ""
    rules = "(*BLOCKS,)" if known else "()"
    return f'''"""How names in a published {camel} checkpoint (diffusers layout) become ours. A table for the loader."""

from __future__ import annotations

{blocks}from omnimuse.loader.rules import Fuse, Rename

# The {len(facts.weights)} tensors of the checkpoint{left}, by kind, with the shape of the first:
{listed}
RULES: tuple[Rename | Fuse, ...] = {rules}
'''


def _pipeline(name: str, camel: str, facts: ModelFacts) -> str:
    encoders = [each for each in facts.components if each.startswith("text_encoder")]
    stages = []
    for number, encoder in enumerate(encoders):
        tokenizer = encoder.replace("text_encoder", "tokenizer")
        more = [] if not number else [f'text="embeds_{number + 1}"', f'encoder="{encoder}"', f'tokenizer="{tokenizer}"']
        stages.append(f"EncodeText({', '.join(more)})")
    return f'''"""{camel} as a pipeline: the declaration, and the few functions that are really its own.

Source: the reference pipeline of diffusers ({facts.arch}).
"""

from __future__ import annotations

from torch import Tensor

from omnimuse.models.{name}.spec import SPEC
from omnimuse.models.{name}.transformer import {camel}Inputs
from omnimuse.pipeline.decode import DecodeImage, preview_by_decoding
from omnimuse.pipeline.denoise import Denoise
from omnimuse.pipeline.latents import InitLatents, packed_shape, packed_tokens
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.stage import Context
from omnimuse.pipeline.state import State
from omnimuse.pipeline.text import EncodeText, for_both_branches


def conditions(ctx: Context, state: State, network: str, branch: str) -> Tensor:
    """The text of a branch: the same at every step."""
    text: Tensor = state[f"{{branch}}_embeds"]
    return text


def inputs(ctx: Context, text: Tensor, latents: Tensor, timestep: Tensor) -> {camel}Inputs:
    """One row: time runs from 1 (noise) to 0 (picture)."""
    return {camel}Inputs(latents, timestep.to(ctx.dtype) / 1000.0, text)


class {camel}(Pipeline):
    """Text to picture."""

    spec = SPEC
    stages = (
        *for_both_branches({", ".join(stages)}),
        InitLatents(packed_shape),  # patches of 2 x 2 latents in one token; latent_shape for others
        Denoise(conditions=conditions, inputs=inputs, token_count=packed_tokens, preview=preview_by_decoding),
        DecodeImage(),
    )


PIPELINE = {camel}
'''


def _small(config: Mapping[str, Any]) -> Iterator[str]:
    """The arguments of a small network of that kind: what the facts' names say must be small, the rest as it is."""
    for key, value in config.items():
        size = next((size for names, size in SMALL if re.fullmatch(names, key)), None)
        if isinstance(value, int) and not isinstance(value, bool) and size is not None:
            yield f"        {key}={size},"
        elif re.search("axes_dim", key) and isinstance(value, list | tuple) and len(value) == 3:
            yield f"        {key}=(4, 6, 6),"
        elif isinstance(value, bool | int | float | str | list | tuple):
            yield f"        {key}={_plain(value)!r},".replace("'", '"')


def _saved(facts: ModelFacts) -> str:
    """The lines that write every component of a tiny checkpoint, tokenizers first: encoders are as large as these."""
    channels = facts.config.get("in_channels", 16)
    first, then = [], []
    for component, (_, cls) in facts.components.items():
        tokenizer = component.replace("text_encoder", "tokenizer")
        made = TINY.get(cls, "").format(tokenizer=tokenizer, latents=channels if channels <= 16 else channels // 4)
        if component == "scheduler":
            then.append(f'parts.write_scheduler(folder, "{cls}", {{"shift": 3.0}})  # to check: as published')
        elif component == facts.network:
            then.append(f'parts.save_module(folder, "{component}", seed, {facts.network})')
        elif made and component.startswith("tokenizer"):
            first += [f"{component} = {made}", f'{component}.save_pretrained(folder / "{component}")']
        elif made:
            then.append(f'parts.save_module(folder, "{component}", seed, lambda: {made})')
        else:
            first.append(f'raise NotImplementedError("a tiny {cls} for {component}, as parts.py has of others")')
    return "\n".join(f"    {line}" for line in (*first, *then))


def _checkpoint(name: str, camel: str, facts: ModelFacts) -> str:
    width = 24 if any("T5" in cls for _, cls in facts.components.values()) else 64
    told = [f'        "{part}": ("{library}", "{cls}"),' for part, (library, cls) in facts.components.items()]
    told += [f'        "{part}": None,' for part in facts.without]
    kind = ": dict[str, tuple[str, str] | None]" if facts.without else ""
    return f'''"""A tiny random checkpoint of the {camel} kind, in the layout that diffusers saves: `build(folder)`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from diffusers import {facts.arch}, {facts.network_class}

from tests.checkpoints import encoders, parts
from tests.checkpoints.wishes import Family, Wish, of_picture, reference_of

TEXT_WIDTH = {width}


def {facts.network}() -> {facts.network_class}:
    """The network of the reference, small; still to be drawn."""
    return {facts.network_class}(
{chr(10).join(_small(facts.config))}
    )


def build(folder: Path, seed: int = 0) -> Path:
    """Writes the checkpoint into `folder` and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
{_saved(facts)}
    components{kind} = {{
{chr(10).join(told)}
    }}
    parts.write_index(folder, "{facts.arch}", components)
    return folder


FAMILIES = (
    Family(
        arch="{facts.arch}",
        build=build,
        wishes=(
            Wish("a red circle", "blurry, grey", replace(of_picture(4, 4.0, 64, 64, 7), max_sequence_length=24)),
            Wish("two squares " * 20, None, replace(of_picture(3, 1.0, 96, 64, 8), max_sequence_length=32)),
            Wish("a star", None, replace(of_picture(5, 5.0, 32, 48, 9), max_sequence_length=24)),
        ),
        reference=reference_of({facts.arch}),
    ),
)
'''
