"""Facts about language models that the library transformers writes with, without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from omnimuse.components.entries import ONE, longest_of, writing
from omnimuse.core.params import GenerationParams
from omnimuse.core.spec import Component, Configs, Limits, Spec


def longest(config: Mapping[str, object]) -> int:
    """How many tokens are read and written in all; of one whose frequencies change where a text grows long, those
    before: rows that turn by others would not share a forward, nor go on from what was turned by the first.
    """
    most = longest_of({"max_position_embeddings": config.get("n_positions"), **config})
    for turning in _turnings(config):
        if "longrope" in (turning.get("rope_type"), turning.get("type")):
            first = turning.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
            most = min(most, first) if isinstance(first, int) else most
    return most


def _turnings(config: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    """What is said of how heads turn, by whatever name, for all layers or for each kind of them."""
    for name in ("rope_scaling", "rope_parameters"):
        said = config.get(name)
        if isinstance(said, Mapping):
            yield said
            yield from (each for each in said.values() if isinstance(each, Mapping))


def limits(configs: Configs) -> Limits:
    return writing(configs, longest(configs["model"]))


SPEC = Spec(
    arch="AutoModelForCausalLM",
    family="library_text",
    summary="Any other language model that attends through transformers' registry: text, by the library's own modules",
    tasks=("text-to-text",),
    components={
        "model": Component(
            (),
            network="omnimuse.models.library_text.transformer:LibraryDecoder",
            rules="omnimuse.models.library_text.weights:rules",
        ),
        "tokenizer": Component(()),
    },
    defaults=ONE,
    supported=frozenset(),
    limits=limits,
    extra=GenerationParams,
    also=("*ForCausalLM", "*LMHeadModel"),
)
