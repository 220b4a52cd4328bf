"""`vllm.sampling_params`: how one stage of a model that writes or speaks chooses its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

from omnimuse.compat.contract.names import TABLE, no_argument, no_attribute, no_name
from omnimuse.core.errors import ConfigError, RequestError
from omnimuse.core.foreign import SETTINGS, note_of


@dataclass(kw_only=True)
class Chosen:
    """What is chosen by keywords; one that is none of its fields is refused, with the field that was meant."""

    def __new__(cls, *args: object, **given: object) -> Self:
        taken = [part.name for part in fields(cls)]
        if (name := next((name for name in given if name not in taken), None)) is not None:
            raise no_argument(cls, name, taken)
        return super().__new__(cls)

    def check(self) -> None:
        """RequestError for an attribute that was set and is no field, unless it asks for what is so anyway."""
        for name in vars(self).keys() - {part.name for part in fields(self)}:
            if name not in SETTINGS:
                raise RequestError(f"{type(self).__name__} has no {name!r} here; {TABLE} lists what it has", name)
            try:
                note_of(name, getattr(self, name))
            except ConfigError as error:
                raise RequestError(str(error), name) from None


@dataclass(kw_only=True)
class _Unknown:
    """What is not honoured here: anything but what it is at first is refused."""

    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_p: float = 0.0
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    bad_words: Sequence[str] | None = None
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    extra_args: Mapping[str, Any] | None = None


@dataclass(kw_only=True)
class SamplingParams(_Unknown, Chosen):
    """Complete as there: what is left out is what vLLM takes, not what the checkpoint says. A `top_k` of 0 or -1 is
    all of them; a `max_tokens` of None as many as there is room for; any other None as the checkpoint says.
    `detokenize` changes nothing: texts are spelt. `stop_token_ids` may be those with which the model ends anyway.
    """

    n: int = 1
    temperature: float | None = 1.0
    top_p: float | None = 1.0
    top_k: int | None = 0
    repetition_penalty: float | None = 1.0
    max_tokens: int | None = 16
    min_tokens: int = 0
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    detokenize: bool = True

    @property
    def choices(self) -> dict[str, Any]:
        """Our names for them; RequestError for what is not honoured."""
        for part in fields(_Unknown):
            value = getattr(self, part.name)
            if value != part.default and value not in ([], {}, ()):
                raise RequestError(f"{part.name}={value!r} is not honoured here; {TABLE} says what is", part.name)
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": None if self.top_k is None else max(self.top_k, 0),
            "repetition_penalty": self.repetition_penalty,
            "max_tokens": self.max_tokens,
            "min_tokens": self.min_tokens,
            **({"stop": stop} if stop else {}),
        }

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
