"""What the tensors in files of adapters are called: which part of a low-rank product each is, and of which layer.

PEFT, diffusers, Kohya, AI-Toolkit and XLabs have their own words for the same. Layers keep the names they have in the
file here; `adapters.py` finds them in a network. Names only; no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Role = Literal["down", "up", "bias", "alpha", "whole", "shift"]
"""Of a product: its halves, the bias of the upper one, and its alpha; of a layer: a difference of its weight (`whole`)
or of its bias (`shift`), which are added as they are.
"""

_ROLES: tuple[tuple[re.Pattern[str], Role], ...] = (
    (re.compile(r"(.+)\.lora_A(?:\.[^.]+)?\.weight"), "down"),
    (re.compile(r"(.+)\.lora_B(?:\.[^.]+)?\.weight"), "up"),
    (re.compile(r"(.+)\.lora_B(?:\.[^.]+)?\.bias"), "bias"),
    (re.compile(r"(.+)\.diff_b"), "shift"),
    (re.compile(r"(.+)\.diff"), "whole"),
    (re.compile(r"(.+)\.lora_down\.weight"), "down"),
    (re.compile(r"(.+)\.lora_up\.weight"), "up"),
    (re.compile(r"(.+)\.lora(?:_linear_layer)?\.down\.weight"), "down"),
    (re.compile(r"(.+)\.lora(?:_linear_layer)?\.up\.weight"), "up"),
    (re.compile(r"(.+_lora\d?)\.down\.weight"), "down"),
    (re.compile(r"(.+_lora\d?)\.up\.weight"), "up"),
    (re.compile(r"(.+?)(?:\.lora|\.network)?[._]alpha"), "alpha"),
)

OTHERS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"lokr_"), "LoKr (Kronecker products)"),
    (re.compile(r"hada_"), "LoHa (Hadamard products)"),
    (re.compile(r"dora_scale|lora_magnitude_vector"), "DoRA (low-rank products with magnitudes of their own)"),
    (re.compile(r"lora_mid|lora_C"), "LoCon with a core tensor"),
    (
        re.compile(r"\.(query|key)_norm\.scale$"),
        "an adapter that controls by pictures, whose network is wider (use the whole model that was published with it)",
    ),
    (re.compile(r"\.set_weight$"), "whole weights beside low-rank products"),
    (
        re.compile(r"\.experts(\.base_layer)*\.lora_[AB]"),
        "products for the weights of experts, one of all of a layer (PEFT's target_parameters)",
    ),
    (re.compile(r"oft_|boft|glora|\.ia3_|\.on_input$|vera_lambda"), "another kind of adapter than low-rank products"),
)
"""Kinds of adapters that are something else, and what people call them."""

DIFFERENCE = re.compile(r".+\.diff(_b)?")
"""Tensors that are added as they are; where all their numbers are 0, as trainers leave them, they say nothing."""

MAIN = ("model.diffusion_model.", "diffusion_model.", "unet.")
"""Beginnings that mean the network which draws, whatever a pipeline calls it."""
UNDERSCORED = ("lora_unet_", "lora_transformer_", "lycoris_")
"""The same, in names with underscores for dots."""
READERS = (
    (re.compile(r"lora_te1_|text_encoders\.clip_l\.transformer\."), "CLIP", 0, "text_encoder"),
    (re.compile(r"lora_te2_|text_encoders\.clip_g\.transformer\."), "CLIP", 1, "text_encoder_2"),
    (re.compile(r"lora_te3_|text_encoders\.\w*t5\w*\.transformer\."), "T5", 0, "text_encoder_3"),
    (re.compile(r"lora_te_|text_encoders\.\w+\.transformer\."), "", 0, "text_encoder"),
)
"""Text encoders: how names of their layers begin with Kohya, with underscores for dots, and with ComfyUI; which of a
pipeline's readers of that kind it is, in the order of their names, and if there is none, what it is usually called.
"""
BESIDE = (("text_embedding_projection.", "connectors"),)
"""What the first published code of a model calls a part that is a component of a pipeline."""


@dataclass(frozen=True)
class Named:
    """A tensor of a file: its role in the product of `layer`, which is called so in the file."""

    layer: str
    role: Role


@dataclass(frozen=True)
class Layer:
    """A layer as a file names it: its component (empty: the network that draws), and what it is called there.

    `flat`: with underscores for dots.
    """

    component: str
    name: str
    flat: bool = False


def named(tensor: str) -> Named | None:
    """What the tensor called so is; None where that is not known."""
    for pattern, role in _ROLES:
        if match := pattern.fullmatch(tensor):
            return Named(match[1], role)
    return None


def other_kind(tensors: Sequence[str]) -> str:
    """What kind of adapter these tensors are of, if it is none of low-rank products alone; empty if it is."""
    return next((kind for pattern, kind in OTHERS for tensor in tensors if pattern.search(tensor)), "")


def bare(name: str) -> str:
    """The layer `name` as the network calls it that an adapter was trained around."""
    return name.removeprefix("base_model.model.")


def layer_of(name: str, components: Mapping[str, str]) -> Layer:
    """Whose the layer `name` is, of a pipeline with these `components`, by name the classes that they are of."""
    name = bare(name)
    for begin in UNDERSCORED:
        if name.startswith(begin):
            return Layer("", name.removeprefix(begin).lstrip("_"), flat=True)
    for begins, kind, place, usual in READERS:
        if match := begins.match(name):
            readers = sorted(each for each, of in components.items() if each.startswith("text_encoder") and kind in of)
            component = readers[place] if kind and place < len(readers) else usual
            return Layer(component, name[match.end() :], flat=match[0].startswith("lora"))
    for begin, component in (*((main, "") for main in MAIN), *BESIDE):
        if name.startswith(begin):
            return Layer(component, name.removeprefix(begin))
    component, dot, rest = name.partition(".")
    # A pipeline's other parts by their usual names, too: what is for them is told so, and not taken for a layer.
    if dot and (component in components or component.startswith(("transformer_2", "text_encoder"))):
        return Layer(component, rest)
    return Layer("", rest if component == "transformer" and dot else name)
