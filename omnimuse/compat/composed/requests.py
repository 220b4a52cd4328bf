"""One of our requests in the words of SGLang's guide, and what its pipelines give in ours.

C channels, h w sides, F frames.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from PIL import Image
from torch import Tensor

from omnimuse.compat.composed.make import Live
from omnimuse.compat.composed.spec import ComposedParams
from omnimuse.compat.contract.requests import to_tensor
from omnimuse.compat.sglang.configs.sample.sampling_params import DataType
from omnimuse.compat.sglang.runtime.pipelines_core.schedule_batch import OutputBatch, Req
from omnimuse.core.errors import ModelError, RequestError
from omnimuse.core.params import DiffusionParams
from omnimuse.pipeline.state import State

Packed = list[Any]
"""What stages hand on, as its class and its attributes: a slot whose tensors can be moved."""


def packed(batch: Any) -> Packed:
    """`batch` for a slot."""
    return [type(batch), vars(batch)]


def unpacked(slot: Packed) -> Any:
    """The same again: what is changed in it is changed in the slot."""
    kind, held = slot
    made = kind.__new__(kind)
    made.__dict__ = held
    return made


def request_of(live: Live, state: State, medium: str) -> Req:
    """What the pipeline is asked for the output that `state` makes: one output, with its own generator.

    What nobody chose has the default of the pipeline's own sampling parameters; their other fields are in `extra`.
    """
    sampling = live.sampling(**_chosen(live, state))
    known = {each.name for each in fields(Req)}
    given = {each.name: getattr(sampling, each.name) for each in fields(sampling) if each.name in known}
    pictures = [Image.open(io.BytesIO(each.png), formats=("PNG",)) for each in state.request.images]
    picture = (pictures[0] if len(pictures) == 1 else pictures) if pictures else None
    own = {each.name: getattr(sampling, each.name) for each in fields(sampling) if each.name not in known}
    given |= {
        "data_type": DataType.VIDEO if medium == "video" else DataType.IMAGE,
        "request_id": state.id,
        "generator": state.generator,
        "seeds": [sampling.seed],
        "pil_image": picture,
        "condition_image": picture,
        "image_path": None,
        "sampling_params": sampling,
        "extra": own,
    }
    return Req(**given)


def _chosen(live: Live, state: State) -> dict[str, Any]:
    request = state.request
    known = {each.name for each in fields(live.sampling)}
    ours = {part.name: getattr(request.params, part.name) for part in fields(DiffusionParams) if part.name in known}
    found = {name: value for name, value in ours.items() if value is not None}
    if "guidance_scale_2" in known:  # left open it is the first one, also where the class has a default
        found.setdefault("guidance_scale_2", None)
    found |= {"prompt": request.prompt, "seed": request.seed(state.output), "num_outputs_per_prompt": 1}
    if request.negative_prompt is not None:
        found["negative_prompt"] = request.negative_prompt
    if isinstance(request.extra, ComposedParams):
        for name, value in request.extra.sampling.items():
            if name not in known:
                raise RequestError(
                    f"{live.sampling.__name__} has no field {name!r}; use one of {', '.join(sorted(known))}",
                    "extra.sampling",
                )
            found[name] = value
    return found


def finished(made: Any, medium: str) -> Tensor:
    """What the last stage gave, in our form: a picture [C, h, w] or a video [F, C, h, w], values in [0, 1]."""
    if not isinstance(made, OutputBatch):
        raise ModelError(f"the last stage gave a {type(made).__name__}; it must give an OutputBatch")
    if made.error:
        raise ModelError(f"the pipeline says: {made.error}")
    output = made.output["output"] if isinstance(made.output, Mapping) else made.output
    if isinstance(output, Tensor) and output.ndim == 5:  # [1, C, F, h, w]
        output = output[:, :, 0] if medium == "image" else output.movedim(1, 2)
    return to_tensor(output, medium)
