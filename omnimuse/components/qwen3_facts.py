"""What the config.json of a Qwen3 language model says of it. No torch.

Variants that are not computed here are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from omnimuse.core.errors import ModelError
from omnimuse.loader.facts import part, read_facts

FIXED: Mapping[str, Any] = {
    "model_type": "qwen3",
    "hidden_act": "silu",
    "attention_bias": False,
    "use_sliding_window": False,
    "quantization_config": None,
}
"""What a configuration may say in one way only."""

IRRELEVANT = frozenset(
    {
        "architectures",
        "attention_dropout",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "initializer_range",
        "max_position_embeddings",
        "max_window_layers",
        "pad_token_id",
        "sliding_window",
        "tie_word_embeddings",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
"""What is only for training, for making text, or said elsewhere; `sliding_window` counts where it is used."""

WHERE = "text_encoder/config.json"
LAYERS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "rms_norm_eps"),
)
THETA = 1_000_000.0
ROPE = ("rope_theta", "rope_parameters", "rope_scaling")
SECTIONS = (24, 20, 20)
"""How many pairs of a head follow each axis of places, where they are woven and nobody says."""


@dataclass(frozen=True)
class Qwen3Config:
    """The facts in the checkpoint's text_encoder/config.json."""

    norms_heads: ClassVar[bool] = True
    """Whether queries and keys are normed."""
    biased: ClassVar[bool] = False
    """Whether what makes queries, keys and values adds a bias."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads or self.head_dim % 2:
            raise ModelError(
                f"{WHERE}: num_attention_heads={self.num_attention_heads}, "
                f"num_key_value_heads={self.num_key_value_heads}, head_dim={self.head_dim}; "
                "the first must be a multiple of the second, and head_dim even"
            )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], where: str = WHERE) -> Qwen3Config:
        """Read the contents of config.json, which messages call `where`; raises ModelError for a variant that this file
        does not compute.
        """
        layers = ["full_attention"] * config.get("num_hidden_layers", 0)
        fixed = {key: (None, value) for key, value in {**FIXED, "layer_types": layers}.items()}
        facts = {**config, "rope_theta": rope_theta(config, where)}
        return read_facts(cls, facts, where, fixed, IRRELEVANT | set(ROPE))


@dataclass(frozen=True)
class PredictorFacts:
    """The predictor's layers, the width of what it is given, and how many codes a frame has."""

    layers: Qwen3Config
    talker_width: int
    groups: int


def rope_theta(config: Mapping[str, Any], where: str) -> float:
    """The base of the rotary frequencies, in the spelling of transformers before 5 or since."""
    rope: dict[str, Any] = {"rope_theta": config.get("rope_theta")}
    for key in ("rope_scaling", "rope_parameters"):
        rope |= config.get(key) or {}
    theta = rope.pop("rope_theta")
    kinds = {rope.pop(key, None) for key in ("rope_type", "type")} - {None, "default"}
    if kinds or rope:
        what = ", ".join(f"{key}={config[key]!r}" for key in ROPE if config.get(key))
        raise ModelError(f"{where}: {what} is not supported; only rope_type 'default' with a rope_theta is")
    if theta is None:
        raise ModelError(
            f"{where} has no rope_theta, neither by itself nor in rope_parameters; use a complete checkpoint"
        )
    return float(theta)


def rotation(
    given: Mapping[str, Any], where: str, usual: tuple[int, ...] = SECTIONS, *, woven: bool
) -> tuple[float, tuple[int, ...]]:
    """By what a decoder turns heads whose tokens have places on three axes: the base of the frequencies, and how many
    pairs follow each axis (`usual`, where it does not say); whether these are `woven` must be as it is here.
    """
    rope = {**(given.get("rope_scaling") or {}), **(given.get("rope_parameters") or {})}
    theta = rope.pop("rope_theta", None) or given.get("rope_theta") or THETA
    sections = tuple(rope.pop("mrope_section", None) or usual)
    said = {rope.pop(name, woven) for name in ("interleaved", "mrope_interleaved")}
    kinds = {rope.pop(key, None) for key in ("rope_type", "type")} - {None, "default"}
    if kinds or rope or said != {woven} or len(sections) != 3:
        told = given.get("rope_parameters") or given.get("rope_scaling")
        raise ModelError(
            f"config.json, {where}: the rotation {told!r} is not supported; only 'default', "
            f"{'' if woven else 'not '}interleaved is"
        )
    return float(theta), sections


Layers = TypeVar("Layers", bound=Qwen3Config)


def layers_of(
    kind: type[Layers], given: Mapping[str, Any], where: str, theta: float, fixed: Mapping[str, Sequence[Any]]
) -> Layers:
    """The layers of a decoder, from a part of config.json that says more; keys of `fixed` may have its values only."""
    known = {name: given[name] for name in (*LAYERS, *fixed) if name in given}
    if "head_dim" not in known and {"hidden_size", "num_attention_heads"} <= known.keys():
        known["head_dim"] = known["hidden_size"] // known["num_attention_heads"]
    return read_facts(kind, {**known, "rope_theta": theta}, f"config.json, {where}", fixed)


def predictor_of(
    talker: Mapping[str, Any], where: str, name: str, width: int, fixed: Mapping[str, Sequence[Any]]
) -> PredictorFacts:
    """The facts of what tells all but the first code of a frame: the part `name` of what config.json says of the
    `talker`, under `where`, whose layers are `width` wide; ModelError for a variant that is not computed here.
    """
    given = part(talker, name)
    groups = given.get("num_code_groups", talker.get("num_code_groups"))
    if not isinstance(groups, int) or groups < 2 or groups != talker.get("num_code_groups", groups):
        raise ModelError(f"config.json, {name}: num_code_groups={groups!r} is not that of {where}, or below 2")
    theta = rope_theta({key: given[key] for key in ROPE if key in given}, f"config.json, {where}, {name}")
    return PredictorFacts(layers_of(Qwen3Config, given, f"{where}, {name}", theta, fixed), width, groups)
