"""What stages are called in recordings and measurements: by the names of vLLM-Omni's profiler, where it has one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

TEXT, SEEN, PICTURE = "text_encoder.forward", "perceive", "vae.encode"
STEPS, WRITING, MADE = "diffuse", "decode", "vae.decode"
"""Texts are encoded; what is shown is looked at, or listened to; an autoencoder makes latents of it; steps of what is
drawn, or painted; tokens are written, or said; latents, codes and spectra become pictures and sounds.
"""

LABELS = MappingProxyType(
    {
        "queue": "queue",
        "encode prompt": TEXT,
        "encode negative prompt": TEXT,
        "read prompt": TEXT,
        "read negative prompt": TEXT,
        "connect prompt": TEXT,
        "connect negative prompt": TEXT,
        "project": TEXT,
        "see pictures": SEEN,
        "perceive": SEEN,
        "look": SEEN,
        "read pictures": SEEN,
        "hear": SEEN,
        "encode image": PICTURE,
        "encode pictures": PICTURE,
        "encode kept picture": PICTURE,
        "encode what is kept": PICTURE,
        "encode sound": PICTURE,
        "denoise": STEPS,
        "paint": STEPS,
        "read": "prefill",
        "read thoughts": "prefill",
        "generate": WRITING,
        "write": WRITING,
        "write prior": WRITING,
        "talk": WRITING,
        "decode": MADE,
        "decode bands": MADE,
        "sound": MADE,
        "forward": "forward",
        "tokenizer.forward": "tokenizer.forward",
        "encode": "save",
    }
)
"""Stages, as `Result.timings` has them; `forward` is a pipeline in one piece. What no network does has no label."""
OTHER = "other"
STAGES = frozenset({*LABELS.values(), OTHER})
"""All labels there are."""

AROUND = frozenset({"queue", "encode"})
"""What is timed around the stages: waiting, and writing files. No stage is called so."""


def label_of(stage: str) -> str:
    """The label of a stage, or of a part of one that bears its label for a name: one of a closed set. Which of several
    encoders it is, in brackets behind its name, does not count.
    """
    name = stage.partition(" (")[0]
    return LABELS.get(name, name if name in LABELS.values() else OTHER)


def word_of(stage: str) -> str:
    """What a stage is called over HTTP: its name in one word."""
    return stage.replace(" ", "_")


def apart(theirs: Iterable[str], ours: Collection[str] = ()) -> dict[str, str]:
    """What stages are called to which somebody else gave names: `stage NAME` where one of `ours`, what is timed around
    them, or another of theirs is called so.
    """
    taken, found = {word_of(name) for name in (*AROUND, *ours)}, dict[str, str]()
    for name in theirs:
        own = name
        while word_of(own) in taken:
            own = f"stage {own}"
        taken.add(word_of(own))
        found[name] = own
    return found


def by_label(timings: Mapping[str, float], labels: Mapping[str, str]) -> dict[str, float]:
    """The seconds of stages, summed by label; `labels` are those that names of stages do not say."""
    seconds: dict[str, float] = {}
    for stage, taken in timings.items():
        label = labels.get(stage, label_of(stage))
        label = label if label in STAGES else OTHER
        seconds[label] = seconds.get(label, 0.0) + taken
    return seconds
