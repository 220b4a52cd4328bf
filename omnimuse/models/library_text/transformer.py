"""Any language model of transformers as a decoder: its own modules, which attend to what our rows remember.

The library lets a model's attention be computed by a function that was registered (`AttentionInterface`). Ours is given
queries, keys and values of rows that lie end to end, turned by their own places, and finds the rows' memories in what
is `remembered`, a keyword that the library hands through. Before anything is loaded a model is asked once, without
memory, what each of its layers would give the function, and which tokens it lets them see. One that remembers more
than that, or wants what is not computed here, is refused by its name.

Letters: B rows that are equally long, or one packed row, S tokens of it, R rows, N heads, H head dim, V words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from typing import Any, TypedDict, Unpack

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from omnimuse.ar.kv import Reading, Sizes, numbers
from omnimuse.ar.remembering import Conditions, Sight
from omnimuse.attention.layout import Layout
from omnimuse.components.decoder import PackedDecoder
from omnimuse.core.errors import ModelError
from omnimuse.core.plans import Grouped
from omnimuse.layers.stack import BlockStack, Memory
from omnimuse.loader.components import quiet

NAME, ASKED = "omnimuse", "omnimuse_asked"
"""What our function is called in the library's registry; and the one that a model is asked by."""
KINDS = frozenset({"full_attention", "sliding_attention"})
"""What a layer may be, where a configuration says so of each."""


@dataclass(frozen=True)
class Mask:
    """What a model is given for a mask while it is asked: of how many tokens, and whether it is one of these at all."""

    window: int | None
    usual: bool


@dataclass(frozen=True)
class Layer:
    """The heads of a layer, those of its keys, and how wide each is; how it looks."""

    heads: int
    key_heads: int
    dim: int
    sight: Sight


@dataclass(frozen=True)
class Remembered:
    """What rows remember, and how layers look at it."""

    rows: Conditions
    layers: Sequence[Layer]


class Said(TypedDict, total=False):
    """What a layer may tell our function. That nobody trains, and where tokens are, changes nothing: places have
    turned what is given already.
    """

    remembered: Any
    scaling: float | None
    sliding_window: int | None
    softcap: float | None
    is_causal: bool | None
    dropout: float
    position_ids: Tensor | None
    use_cache: bool | None
    output_attentions: bool | None


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, **said: Unpack[Said]
) -> tuple[Tensor, None]:
    """Queries [B, N, S, H], keys and values of as many heads or fewer -> what is seen, [B, S, N, H]."""
    remembered, scaling = said["remembered"], said.get("scaling")
    layer, dim = number(module), query.shape[-1]
    if scaling is not None and scaling != dim**-0.5:
        query = query * (scaling * dim**0.5)
    q, k, v = (part.transpose(1, 2).contiguous() for part in (query, key, value))
    seen: Tensor = remembered.rows.attend(layer, q, k, v, remembered.layers[layer].sight)
    return seen.unflatten(-1, (-1, dim)), None


def told(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **said: Unpack[Said]
) -> tuple[Tensor, None]:
    """The same of a model that is asked: what is `remembered` are its layers, by their numbers. Nothing is computed."""
    layers, wants = said.get("remembered"), {name for name, value in said.items() if value is not None}
    window, cap = said.get("sliding_window"), said.get("softcap")
    if not isinstance(layers, dict):
        raise ModelError("does not hand on what its layers are told")
    if number(module) in layers:
        raise ModelError("has layers that attend more than once")
    if not isinstance(attention_mask, Mask) or not attention_mask.usual or said.get("is_causal") is False:
        raise ModelError("lets its tokens see others in a way of its own")
    if window not in (None, attention_mask.window):
        raise ModelError(f"has a window of {window} tokens in its layers, and {attention_mask.window} in its mask")
    if unknown := wants - Said.__annotations__.keys():
        raise ModelError(f"has attention with {', '.join(sorted(unknown))}")
    if not query.shape[-1] == key.shape[-1] == value.shape[-1] or key.shape[1] != value.shape[1]:
        raise ModelError("has keys and values of different sizes")
    layers[number(module)] = Layer(query.shape[1], key.shape[1], key.shape[-1], Sight(attention_mask.window, cap))
    return query.transpose(1, 2), None


class Masking(TypedDict, total=False):
    """What else the library says of a mask, which it makes of our answer to nothing of that."""


def mask(
    *, mask_function: Any, local_size: int | None = None, use_vmap: bool = False, **others: Unpack[Masking]
) -> Mask:
    """What the library would have made of tokens that see all before them, or as many as `local_size`; where it would
    look at each of them (`use_vmap`), there is more to it, and where the first sees the second, it is another one.
    """
    first, second = torch.zeros((), dtype=torch.int64, device="cpu"), torch.ones((), dtype=torch.int64, device="cpu")
    return Mask(local_size, not use_vmap and not mask_function(first, first, first, second))


def number(module: Any) -> int:
    """Which layer a site of attention is in."""
    return int(module.layer_idx)


def class_of(name: str) -> Any:
    """The library's class of that name; ModelError for one that it does not have."""
    with quiet("transformers"):
        library = import_module("transformers")
        kind: Any = getattr(library, name, None)
    if not issubclass(kind if isinstance(kind, type) else object, library.PreTrainedModel):
        raise ModelError(
            f"{name} is not a class of transformers {library.__version__}, and code from elsewhere is never run; "
            "install a version that has it, or use another model"
        )
    return kind


def check(kind: Any, facts: Any) -> None:
    """ModelError for a class, or a configuration of it, whose layers cannot be given our rows, as far as these say."""
    taken, said = signature(kind.forward).parameters, facts.to_dict()
    kept = [kind._keep_in_fp32_modules, kind._keep_in_fp32_modules_strict]
    problems = {
        "remembers more than keys and values": kind._is_stateful,
        "does not attend through the library's registry": not kind._supports_attention_backend,
        "cannot be told where its tokens are": not {"position_ids", "logits_to_keep"} <= taken.keys(),
        "has layers of other kinds": not set(said.get("layer_types") or ()) <= KINDS,
        "has layers that share what others remember": bool(said.get("num_kv_shared_layers")),
        "sees its tokens in chunks": said.get("attention_chunk_size") is not None,
        "keeps some of its weights in float32": any(kept),
        "has parts besides a language model": facts.get_text_config() is not facts,
    }
    for problem, there in problems.items():
        if there:
            raise refused(kind.__name__, problem)


def refused(name: str, why: str) -> ModelError:
    return ModelError(f"the architecture {name} is not supported: it {why}. `omnimuse models` lists what is")


class LibraryDecoder(PackedDecoder):
    """The library's `model`. Its layers run as the library has it, so there are no stacks of blocks."""

    def __init__(self, model: Any, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.model = model
        self.asked = layers
        others = [part for part in model.modules() if not isinstance(part, nn.Linear | nn.Embedding)]
        if odd := sorted({type(part).__name__ for part in others if any(p.ndim > 1 for p in part.parameters(False))}):
            self.uneven = f"products of {', '.join(odd)} are the library's own, and have not been tried in company"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LibraryDecoder:
        [name] = config["architectures"]
        kind = class_of(name)
        with quiet("transformers"):
            _register()
            try:
                facts = kind.config_class.from_dict(dict(config))
                check(kind, facts)
                facts._attn_implementation = ASKED
                model = kind(facts).eval()
            except (TypeError, ValueError, LookupError, AttributeError, StrictDataclassError) as problem:
                raise refused(name, f"is not made of its config.json by transformers ({problem})") from problem
            # It is made twice, and with memory for its buffers only to take these (`loader.tensors.construct`).
            layers = _asked(model.to("meta")) if torch.zeros(()).is_meta else ()
            model.set_attn_implementation(NAME)
            model.config.pad_token_id = None  # at every step it would be looked for, to warn, and the host would wait
        return cls(model, layers)

    @property
    def sizes(self) -> Sizes:
        first = self.asked[0]
        dtype = self.model.get_input_embeddings().weight.dtype
        return Sizes(len(self.asked), first.key_heads, first.dim, dtype)

    @property
    def whole(self) -> Grouped:
        return Grouped(self.asked[0].heads, self.asked[0].key_heads)

    def stacks(self) -> dict[str, BlockStack]:
        return {}

    def logits(
        self, rows: Sequence[Reading], layout: Layout, given: Tensor, memories: Sequence[Memory] | None
    ) -> Tensor:
        device, wanted = given.device, None  # where each row ends, [B, R / B]
        if layout.length == 1:
            more = [rows[0].start] * (len(given) - len(rows))
            places = numbers([*(row.start for row in rows), *more], device)[:, None]  # [R, 1]
        else:
            each = [torch.arange(row.start, row.start + row.count, device=device) for row in rows]
            places = layout.pack(each)
            ends = numbers([end.stop - 1 for end in layout.slices()], device)
            wanted = ends.view(len(given), -1) % given.shape[1]
        cond = Conditions.of(rows, layout, places, places)  # they turn by what the library makes of them
        said: Tensor = self.model(
            input_ids=given,
            position_ids=places,
            use_cache=False,
            logits_to_keep=1 if wanted is None else wanted,
            remembered=Remembered(cond, self.asked),
        ).logits
        return said.flatten(0, 1)


def _register() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, attend)
    AttentionInterface.register(ASKED, told)
    AttentionMaskInterface.register(ASKED, mask)  # by the other name it makes none


def _asked(model: Any) -> tuple[Layer, ...]:
    """What the layers of a model on the meta device give our function; ModelError where that is not what it can be
    given, or not all that they remember.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    name, layers = type(model).__name__, dict[int, Layer]()
    if any(isinstance(each, WeightConverter) for each in get_model_conversion_mapping(model)):
        raise refused(name, "has weights, as experts do, that the library joins while it loads them")
    tokens = torch.arange(2, device="meta")[None]
    there = torch.ones_like(tokens)  # without it the library looks for packed rows, in numbers that there are none of
    try:
        model(input_ids=tokens, attention_mask=there, position_ids=tokens, use_cache=False, remembered=layers)
    except ModelError as problem:
        raise refused(name, str(problem)) from None
    except (TypeError, ValueError, AttributeError, LookupError, NotImplementedError, RuntimeError) as problem:
        raise refused(name, f"does not run as it would here ({type(problem).__name__}: {problem})") from problem
    found = tuple(layers[number] for number in sorted(layers))
    if sorted(layers) != list(range(model.config.num_hidden_layers)):
        raise refused(name, f"attends in {len(layers)} of its layers only, and mixes tokens in others by other means")
    if len({(each.key_heads, each.dim) for each in found}) > 1:
        raise refused(name, "has layers whose keys and values differ in size")
    return found
