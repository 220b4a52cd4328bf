"""The builder of tiny checkpoints of a draft, as text: small components, an index, and requests to compare."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from omnimuse.compat.draft.facts import ModelFacts, config_class

MADE = {
    "T5EncoderModel": "lambda: encoders.t5_encoder(len({tokenizer}), TEXT_WIDTH)",
    "UMT5EncoderModel": "lambda: encoders.umt5_encoder(len({tokenizer}))",
    "CLIPTextModel": "lambda: encoders.clip_encoder(len({tokenizer}))",
    "Gemma2Model": "encoders.gemma2_encoder",
    "Qwen3Model": "lambda: parts.qwen3_encoder(len({tokenizer}), TEXT_WIDTH)",
    "Qwen2_5_VLForConditionalGeneration": "lambda: parts.qwen25_vl(len({tokenizer}), TEXT_WIDTH)",
    "AutoencoderKL": "lambda: parts.kl_autoencoder({latents})",
    "AutoencoderDC": "parts.dc_autoencoder",
    "T5Tokenizer": "encoders.t5_tokenizer()",
    "CLIPTokenizer": "encoders.clip_tokenizer()",
    "GemmaTokenizer": "encoders.gemma_tokenizer()",
    "Qwen2Tokenizer": "parts.qwen_tokenizer()",
    "PreTrainedTokenizerFast": "encoders.bpe_tokenizer()",
    "TokenizersBackend": "encoders.bpe_tokenizer()",
}
"""What the suite has small ones of, and how they are made; a `Fast` tokenizer is made as the other."""
LANGUAGE = "lambda: encoders.language_model({cls}, {tokenizer}, TEXT_WIDTH)"
"""The same of any other language model."""
LATENTS = {"AutoencoderDC": 8}
"""Channels of the latents of small autoencoders that have as many whatever is asked; those of others are the network's
own.
"""
PIXELS = {"AutoencoderDC": 32}
"""Pixels a side of a latent of small autoencoders, where these are not 8."""
WIDTH, HEADS, HEAD = 32, 2, 16
LONGEST = 120
"""Letters of a line."""
T5_WIDTH, OTHER_WIDTH = 24, 64
"""Of the features of small text encoders, of the T5 and Gemma kinds and of others."""

SMALL: tuple[tuple[str, object], ...] = (
    (r"\w+_layers|num_blocks|depth", 2),
    (r"num_(\w+_)?heads|n_heads|n_kv_heads", HEADS),
    (r"(\w+_)?head_dim", HEAD),
    (r"sample_size", 32),
    (r"joint_attention_dim|cross_attention_dim|caption_channels|cap_feat_dim|(\w+_)?text_(\w+_)?dim", "TEXT_WIDTH"),
    (r"hidden_size|inner_dim|width|(\w+_)?dim", WIDTH),
)
"""Facts of a network by name, and how small they are in a tiny one; the first that fits counts."""


def plain(value: Any) -> Any:
    """A value of a configuration, with tuples for lists."""
    return tuple(map(plain, value)) if isinstance(value, list | tuple) else value


def small(config: Mapping[str, Any], latents: int) -> Iterator[tuple[str, object]]:
    """The arguments of a small network of that kind: what is as wide as all heads together is so here, what the facts'
    names say must be small is small, and the rest as it is.
    """
    heads, each = config.get("num_attention_heads"), config.get("attention_head_dim")
    inner = heads * each if isinstance(heads, int) and isinstance(each, int) else None
    for key, value in config.items():
        size = next((size for names, size in SMALL if re.fullmatch(names, key)), None)
        if key in ("in_channels", "out_channels") and isinstance(value, int):
            yield key, latents * value // config["in_channels"]
        elif isinstance(value, int) and not isinstance(value, bool) and (value == inner or size is not None):
            yield key, WIDTH if value == inner else size
        elif re.search("axes_dim", key) and isinstance(value, list | tuple) and len(value) == 3:
            yield key, (4, 6, 6)
        elif isinstance(value, bool | int | float | str | list | tuple):
            yield key, plain(value)


def _written(value: object) -> str:
    """An argument as it stands in code."""
    return "TEXT_WIDTH" if value == "TEXT_WIDTH" else repr(value).replace("'", '"')


def _language(cls: str) -> bool:
    """Whether a class of transformers is a language model whose heads share keys."""
    config = config_class(cls)
    return config is not None and hasattr(config(), "num_key_value_heads") and hasattr(config(), "hidden_size")


def _saved(facts: ModelFacts, latents: int) -> tuple[list[str], list[str]]:
    """The lines that write every component of a tiny checkpoint, tokenizers first: encoders are as large as these;
    and functions that are still to be written for those that nobody has.
    """
    first, then, missing = list[str](), list[str](), list[str]()
    for component, (_, cls) in facts.components.items():
        tokenizer = component.replace("text_encoder", "tokenizer")
        made = (
            MADE.get(cls)
            or MADE.get(cls.removesuffix("Fast"))
            or (LANGUAGE if component.startswith("text_encoder") and _language(cls) else "")
        )
        made = made.format(tokenizer=tokenizer, latents=latents, cls=cls)
        saved = f'parts.save_module(folder, "{component}", seed, {made or component})'
        if component == "scheduler":
            flow = '{"shift": 3.0}' if "FlowMatch" in cls else "{}"
            then.append(f'parts.write_scheduler(folder, "{cls}", {flow})  # to check: as published')
        elif component.startswith("tokenizer"):
            if not made:
                missing.append(MISSING.format(component=f"small_{component}", cls=cls))
                made = f"small_{component}()"
            first += [f"{component} = {made}", f'{component}.save_pretrained(folder / "{component}")']
        elif made or component == facts.network:
            then.append(saved)
        else:
            missing.append(MISSING.format(component=component, cls=cls))
            then.append(saved)
    return [*first, *then], missing


def _laid_out(line: str) -> str:
    """A call in the body of a function, on three lines where one is too short."""
    if len(line) + 4 <= LONGEST or line.endswith("published"):
        return f"    {line}"
    call, _, given = line.removesuffix(")").partition("(")
    return f"    {call}(\n        {given}\n    )"


MISSING = '''def {component}() -> {cls}:
    """Still to be written."""
    raise NotImplementedError("a tiny {cls}, as tests/checkpoints/parts.py and encoders.py have of others")


'''


def _width(facts: ModelFacts) -> str:
    """How wide the texts of a small one are: as the network says that has no width of its own for them."""
    if not any(size == "TEXT_WIDTH" for _, size in small(facts.config, 1)):
        return str(WIDTH)
    narrow = any(re.search("T5|Gemma2", cls) for _, cls in facts.components.values())
    return str(T5_WIDTH if narrow else OTHER_WIDTH)


def checkpoint(camel: str, facts: ModelFacts, *, packs: bool, patch: int) -> str:
    """The text of `tests/checkpoints/NAME.py`."""
    autoencoder = facts.components.get("vae", ("", ""))[1]
    channels = facts.config.get("in_channels") or 16
    latents = LATENTS.get(autoencoder, channels // 4 if packs else channels)
    network = small(facts.config, 4 * latents if packs else latents)
    lines, missing = _saved(facts, latents)
    told = [f'        "{part}": ("{library}", "{cls}"),' for part, (library, cls) in facts.components.items()]
    told += [f'        "{part}": None,' for part in facts.without]
    body = BODY.format(
        width=_width(facts),
        network=facts.network,
        cls=facts.network_class,
        given="\n".join(f"        {name}={_written(value)}," for name, value in network),
        missing="".join(missing),
        built="\n".join(map(_laid_out, lines)),
        kind=": dict[str, tuple[str, str] | None]" if facts.without else "",
        told="\n".join(told),
        arch=facts.arch,
        wishes=_wishes(facts, PIXELS.get(autoencoder, 8) * patch),
    )
    return f'''"""A tiny random checkpoint of the {camel} kind, in the layout that diffusers saves: `build(folder)`."""

from __future__ import annotations

{_imports(facts, body)}

{body}'''


BODY = '''TEXT_WIDTH = {width}


def {network}() -> {cls}:
    """The network of the reference, small; still to be drawn."""
    return {cls}(
{given}
    )


{missing}def build(folder: Path, seed: int = 0) -> Path:
    """Writes the checkpoint into `folder` and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
{built}
    components{kind} = {{
{told}
    }}
    parts.write_index(folder, "{arch}", components)
    return folder


FAMILIES = (
    Family(
        arch="{arch}",
        build=build,
        wishes=(
{wishes}
        ),
        reference=reference_of({arch}),
    ),
)
'''


def _imports(facts: ModelFacts, body: str) -> str:
    """What `body` needs."""
    named = {"diffusers": {facts.arch}, "transformers": set[str]()}
    for library, cls in facts.components.values():
        if library in named and re.search(rf'(?<!")\b{cls}\b(?!")', body):
            named[library].add(cls)
    lines = ["from dataclasses import replace"] * ("replace(" in body) + ["from pathlib import Path", ""]
    lines += [f"from {library} import {', '.join(sorted(names))}" for library, names in named.items() if names]
    modules = ", ".join(name for name in ("encoders", "parts") if f"{name}." in body)
    lines += ["", f"from tests.checkpoints import {modules}"]
    return "\n".join([*lines, "from tests.checkpoints.wishes import Family, Wish, of_picture, reference_of"])


def _wishes(facts: ModelFacts, step: int) -> str:
    """Requests to compare, with sides of a few tokens, of `step` pixels each: guided, unguided, and of uneven sides."""
    step = max(16, step)
    sides = ((4, 4), (6, 4), (2, 3))
    asked = ((4, 4.0, 7, 24), (3, 1.0, 8, 32), (5, 5.0, 9, 24))
    prompts = ('"a red circle", "blurry, grey"', '"two squares " * 20, None', '"a star", None')
    found = list[str]()
    for prompt, (high, wide), (steps, scale, seed, tokens) in zip(prompts, sides, asked, strict=True):
        params = f"of_picture({steps}, {scale}, {high * step}, {wide * step}, {seed})"
        if "max_sequence_length" in facts.source.parameters:
            params = f"replace({params}, max_sequence_length={tokens})"
        found.append(f"            Wish({prompt}, {params}),")
    return "\n".join(found)
