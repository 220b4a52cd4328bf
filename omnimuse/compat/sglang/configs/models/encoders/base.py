"""`sglang.multimodal_gen.configs.models.encoders.base`: what an encoder is built from, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from omnimuse.compat.composed.names import no_name
from omnimuse.compat.sglang.configs.models.base import ArchConfig, ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

_TOKENIZING = {"truncation": True, "return_tensors": "pt"}


@dataclass
class EncoderArchConfig(ArchConfig):
    """An encoder, and how its tokenizer is called; `text_len` is the longest text, in tokens."""

    architectures: list[str] = field(default_factory=list)
    text_len: int = 0
    hidden_size: int = 0
    tokenizer_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.tokenizer_kwargs:
            longest = {"max_length": self.text_len, "padding": "max_length"} if self.text_len else {}
            self.tokenizer_kwargs = {**_TOKENIZING, **longest}


TextEncoderArchConfig = EncoderArchConfig
ImageEncoderArchConfig = EncoderArchConfig


@dataclass
class EncoderConfig(ModelConfig):
    """The same, with what is chosen for it besides."""

    arch_config: ArchConfig = field(default_factory=EncoderArchConfig)
    prefix: str = ""


TextEncoderConfig = EncoderConfig
ImageEncoderConfig = EncoderConfig


@dataclass
class BaseEncoderOutput:
    """What an encoder gives: its last states [B, S, D], one vector of the whole text [B, D], those of all layers."""

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    attention_mask: Tensor | None = None


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
