"""The files of a draft, as text: everything that the facts tell, and in the rest what is to be done."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from omnimuse.compat.draft.facts import ModelFacts
from omnimuse.compat.draft.tiny import checkpoint, plain
from omnimuse.components.two_stream_names import RULES as TWO_STREAMS
from omnimuse.loader.rules import apply_rules

READERS = {
    "CLIPTextModel": "CLIP",
    "CLIPTextModelWithProjection": "CLIP_PROJECTED",
    "T5EncoderModel": "T5",
    "Gemma2Model": "GEMMA2",
    "Qwen3Model": "QWEN3",
}
"""Text encoders that `omnimuse/components/entries.py` has, with their tokenizers."""
BACKENDS = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""What checkpoints call a tokenizer of no model's own, before transformers 5 and since."""
SPEC_IMPORTS: Mapping[str, Iterable[str]] = {
    "omnimuse.components.entries": (
        *("CLIP", "CLIP_PROJECTED", "GEMMA2", "MAX_SIDE", "QWEN3", "SQUARE", "T5", "Reader", "latent_model"),
        *("own_transformer", "patched"),
    ),
    "omnimuse.core.autoencoder": ("factor",),
    "omnimuse.core.guidance": ("Guidance",),
    "omnimuse.core.params": ("DiffusionParams",),
    "omnimuse.core.spec": ("Component", "Configs", "Limits", "Spec", "Variant"),
}
"""What a spec may need, from where."""
PIPELINE_IMPORTS: Mapping[str, Iterable[str]] = {
    "omnimuse.core.request": ("Request",),
    "omnimuse.core.spec": ("Configs",),
}
"""What a pipeline may need besides."""


def files(name: str, facts: ModelFacts) -> dict[str, str]:
    """Path in the project -> text, of a family called `name`."""
    camel = called(name, facts.arch)
    folder = f"omnimuse/models/{name}"
    return {
        f"{folder}/__init__.py": f'"""{camel}, a family of models."""\n',
        f"{folder}/spec.py": _spec(name, camel, facts),
        f"{folder}/transformer.py": _transformer(camel, facts),
        f"{folder}/weights.py": _weights(camel, facts),
        f"{folder}/pipeline.py": _pipeline(name, camel, facts),
        f"tests/checkpoints/{name}.py": checkpoint(camel, facts, packs=packs(facts), patch=patch(facts)),
    }


def called(name: str, arch: str) -> str:
    """The classes of a family begin with this: as the pipeline's does, if it is called so but for small letters."""
    own = arch.removesuffix("Pipeline")
    return own if own.lower() == name.replace("_", "") else "".join(word.capitalize() for word in name.split("_"))


def packs(facts: ModelFacts) -> bool:
    """Whether the pipeline puts 2 x 2 latents into the channels of one token, and not the network."""
    return "_pack_latents" in facts.source.text


def patch(facts: ModelFacts) -> int:
    """Latents a side of one token."""
    side = facts.config.get("patch_size")
    return 2 if packs(facts) or not isinstance(side, int) else side


def _default(facts: ModelFacts, name: str, otherwise: Any) -> Any:
    parameter = facts.source.parameters.get(name)
    value = None if parameter is None else parameter.default
    return value if isinstance(value, int | float | str) and not isinstance(value, bool) else otherwise


def _guidance(facts: ModelFacts) -> tuple[str, str]:
    """What of its call says how it is guided: the name of the scale, and the declaration."""
    if "true_cfg_scale" in facts.source.parameters:
        return "true_cfg_scale", 'Guidance(("true_cfg_scale",))'
    return "guidance_scale", "Guidance()"


def _component(name: str, facts: ModelFacts) -> str:
    """The entry of a component that a library builds."""
    _, cls = facts.components[name]
    return f"Component({BACKENDS if cls in BACKENDS else (cls,)!r})".replace("'", '"')


def _readers(facts: ModelFacts) -> dict[str, tuple[str, str]]:
    """Of every text encoder that has a tokenizer, in order, what its entry is called, and the entry, if it is new."""
    found: dict[str, tuple[str, str]] = {}
    for number in range(1, len(facts.components)):
        suffix = "" if number == 1 else f"_{number}"
        encoder, tokenizer = f"text_encoder{suffix}", f"tokenizer{suffix}"
        if encoder not in facts.components or tokenizer not in facts.components:
            break
        known = READERS.get(facts.components[encoder][1])
        new = f"Reader({_component(encoder, facts)}, {_component(tokenizer, facts)})"
        found[suffix] = (known, "") if known else (f"READER{suffix}", new)
    return found


def _components(name: str, camel: str, facts: ModelFacts) -> str:
    """The components, as the entries that many families have say them; what else there is, one by one."""
    network = f'own_transformer("{name}", "{camel}Transformer", "{facts.network_class}")'
    readers = _readers(facts)
    usual = {"transformer", "vae", "scheduler"} | {
        f"{part}{end}" for end in readers for part in ("text_encoder", "tokenizer")
    }
    if facts.network != "transformer" or not {"vae", "scheduler"} <= facts.components.keys():
        return _listed({part: _component(part, facts) for part in facts.components} | {facts.network: network})
    entries = [network, *(reader for reader, _ in readers.values())]
    if facts.components["vae"][1] != "AutoencoderKL":
        entries.append(f"vae={_component('vae', facts)}")
    others = {part: _component(part, facts) for part in facts.components if part not in usual}
    return _spread("latent_model", entries) + (f" | {_listed(others)}" if others else "")


def _spread(call: str, arguments: Sequence[str]) -> str:
    """A call as it stands behind `components=`, an argument a line where one line is too short."""
    line = f"{call}({', '.join(arguments)})"
    each = "".join(f"        {argument},\n" for argument in arguments)
    return line if len(line) < 103 else f"{call}(\n{each}    )"


def _listed(entries: Mapping[str, str]) -> str:
    """Entries by the names of their components."""
    each = (f'"{name}": {entry}' for name, entry in entries.items())
    return f"{{{', '.join(each)}}}"


def _limits(facts: ModelFacts, longest: int) -> tuple[str, str]:
    """What a checkpoint can be asked for: a definition, if it needs one, and what it is called."""
    if patch(facts) == 2:
        return "", f"patched({longest})"
    multiple = f"{patch(facts)} * " * (patch(facts) > 1) + 'factor(configs["vae"])'
    return LIMITS.format(multiple=multiple, longest=longest), "limits"


LIMITS = '''

def limits(configs: Configs) -> Limits:
    """What a checkpoint can be asked for. To check: what sides must be multiples of, and the largest."""
    return Limits(size_multiple={multiple}, max_side=MAX_SIDE, max_sequence_length={longest})


'''


def _spec(name: str, camel: str, facts: ModelFacts) -> str:
    scale, guidance = _guidance(facts)
    longest = _default(facts, "max_sequence_length", 256)
    made, (function, limits) = _components(name, camel, facts), _limits(facts, longest)
    readers = "".join(f"{called} = {new}\n" for called, new in _readers(facts).values() if new)
    sizes = {side: _default(facts, side, 1024) for side in ("height", "width")}
    other = "".join(f", {side}={size}" for side, size in sizes.items() if size != 1024)
    asked = f"num_inference_steps={_default(facts, 'num_inference_steps', 50)}, "
    asked += f"{scale}={float(_default(facts, scale, 1.0))}, max_sequence_length={longest}{other}"
    head = f"{readers}{function or chr(10)}".removeprefix("\n")
    body = f'''{head}DEFAULTS = DiffusionParams({asked}).over(SQUARE)

SPEC = Spec(
    arch="{facts.arch}",
    family="{name}",
    summary="{camel}: to be said in one line",
    tasks=("text-to-image",),
    components={made},
    defaults=DEFAULTS,
    supported=frozenset({{"{scale}"}}),
    limits={limits},
    guidance={guidance},
    variants=(Variant("{camel}", ("OWNER/{camel}",), DEFAULTS),),
)
'''
    return f'''"""Facts about {camel}, without torch.

Source: the published checkpoint's `model_index.json` and card, and the reference pipeline of diffusers.
"""

from __future__ import annotations

{_imports(body, SPEC_IMPORTS)}

{body}'''


def _imports(body: str, known: Mapping[str, Iterable[str]]) -> str:
    """Of the names of every module those that stand in `body`, imported."""
    found = {module: [name for name in names if re.search(rf"\b{name}\b", body)] for module, names in known.items()}
    return "\n".join(f"from {module} import {', '.join(names)}" for module, names in found.items() if names)


def _typed(config: Mapping[str, Any]) -> Iterator[str]:
    """The facts of a configuration as fields of a dataclass; what is no plain value is left out."""
    for key, value in config.items():
        value = plain(value)
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


COUNT = '''def tokens(configs: Configs, request: Request) -> int:
    """How many tokens a picture is."""
    rows, columns = cells(configs, request)
    return {rows} * {columns}


'''
"""Of a network whose tokens are not of 2 x 2 latents."""


def _pipeline(name: str, camel: str, facts: ModelFacts) -> str:
    encoders = [each for each in facts.components if each.startswith("text_encoder")]
    stages = []
    for number, encoder in enumerate(encoders):
        tokenizer = encoder.replace("text_encoder", "tokenizer")
        beside = (
            [] if not number else [f'text="embeds_{number + 1}"', f'encoder="{encoder}"', f'tokenizer="{tokenizer}"']
        )
        stages.append(f"EncodeText({', '.join(beside)})")
    side, shape = patch(facts), "packed_shape" if packs(facts) else "latent_shape"
    counted, count, imports = "packed_tokens", "", f"InitLatents, {shape}, packed_tokens"
    if side != 2:
        sides = {each: each if side == 1 else f"({each} // {side})" for each in ("rows", "columns")}
        counted, count, imports = "tokens", COUNT.format(**sides), f"InitLatents, cells, {shape}"
    more = f"{_imports(count, PIPELINE_IMPORTS)}\n" if count else ""
    return f'''"""{camel} as a pipeline: the declaration, and the few functions that are really its own.

Source: the reference pipeline of diffusers ({facts.arch}).
"""

from __future__ import annotations

from torch import Tensor

{more}from omnimuse.models.{name}.spec import SPEC
from omnimuse.models.{name}.transformer import {camel}Inputs
from omnimuse.pipeline.decode import DecodeImage, preview_by_decoding
from omnimuse.pipeline.denoise import Denoise
from omnimuse.pipeline.latents import {imports}
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


{count}class {camel}(Pipeline):
    """Text to picture."""

    spec = SPEC
    stages = (
        *for_both_branches({", ".join(stages)}),
        InitLatents({shape}),
        Denoise(conditions=conditions, inputs=inputs, token_count={counted}, preview=preview_by_decoding),
        DecodeImage(),
    )


PIPELINE = {camel}
'''
