"""What stages are called in recordings and measurements: by the names of vLLM-Omni's profiler, where it has one."""

from __future__ import annotations

from types import MappingProxyType

LABELS = MappingProxyType(
    {
        "queue": "queue",
        "encode prompt": "text_encoder.forward",
        "encode negative prompt": "text_encoder.forward",
        "encode image": "vae.encode",
        "encode pictures": "vae.encode",
        "encode sound": "vae.encode",
        "denoise": "diffuse",
        "read": "prefill",
        "generate": "decode",
        "decode": "vae.decode",
        "encode": "save",
    }
)
"""Stages, as `Result.timings` has them. What a family does besides has no label."""
OTHER = "other"


def label_of(stage: str) -> str:
    """The label of a stage: one of a closed set."""
    return LABELS.get(stage, OTHER)
