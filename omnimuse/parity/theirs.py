"""The reference's side: the pipeline class that the checkpoint names, called as a user would, with hooks that note."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from inspect import signature
from io import BytesIO
from time import perf_counter
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from omnimuse.compat.diffusers.pipeline import to_tensor
from omnimuse.core.errors import ModelError
from omnimuse.core.request import Picture, Request
from omnimuse.core.spec import Spec
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.loader.components import quiet
from omnimuse.parity.decoding import AUTOENCODER, noting_decoder
from omnimuse.parity.notes import Evaluation, Trail
from omnimuse.pipeline.region import anew, seen

PICTURE = ("image", "control_image")
"""What the library calls a picture to start from, or to follow."""
MASK = "mask_image"
"""What it calls that which says where a picture is drawn anew."""
CHANGING = ("Img2ImgPipeline", "ImageToVideoPipeline")
"""How the library calls the pipelines that start from a picture, beside those that do not."""
KEEPING = ("InpaintPipeline",)
"""And those that draw a part of it anew."""


def load_theirs(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """The pipeline of diffusers that the checkpoint names, over it; ModelError where there is none, or it refuses."""
    with quiet("diffusers"), quiet("transformers"):
        library = import_module("diffusers")
        if not hasattr(library, checkpoint.arch):
            raise ModelError(
                f"this diffusers ({library.__version__}) has no {checkpoint.arch}, so there is nothing to compare with"
            )
        cls = getattr(library, checkpoint.arch)
        needed = [name for name, each in signature(cls.__init__).parameters.items() if each.default is each.empty]
        absent = dict.fromkeys(name for name in needed if name != "self" and name not in checkpoint.components)
        try:
            pipe = cls.from_pretrained(checkpoint.folder, torch_dtype=dtype, local_files_only=True, **absent)
        except (ImportError, ValueError, TypeError, OSError) as problem:
            raise ModelError(f"diffusers cannot open {checkpoint.folder}: {problem}") from problem
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.inference_mode()
def their_trail(pipe: Any, request: Request, networks: Sequence[str], spec: Spec) -> Trail:
    """What the reference makes of the first output of `request`, with notes of the networks that are named."""
    pipe, trail = suited(pipe, request), Trail()
    evaluations: list[Evaluation] = []

    def note(timestep: Any, latents: Tensor) -> None:
        trail.latents.append(latents[0].float().clone())
        trail.timesteps.append(float(timestep))
        trail.steps.append(list(evaluations))
        evaluations.clear()

    if "guider" in pipe.components:
        why = "has its scale in a guider and pads in its blocks, which cannot be compared yet; tests/parity has it"
        raise ModelError(f"{type(pipe).__name__} of diffusers {why}")
    given = {**arguments(pipe, request, spec), **_listening(pipe, note)}
    begun = perf_counter()
    decoding = noting_decoder(pipe.components.get(AUTOENCODER), trail.decoded)
    with quiet("diffusers"), _noting(pipe, networks, evaluations), decoding:
        try:
            made = pipe(**given)
        except (NameError, ImportError, TypeError, ValueError, RuntimeError) as problem:
            raise ModelError(f"{type(pipe).__name__} of diffusers does not draw this: {problem}") from problem
    trail.seconds = perf_counter() - begun
    if evaluations:  # a pipeline that tells nothing between its steps
        trail.timesteps = [float(timestep) for timestep in pipe.scheduler.timesteps]
        each = max(1, len(evaluations) // len(trail.timesteps))
        trail.steps = [evaluations[start : start + each] for start in range(0, len(evaluations), each)]
    elif max(trail.timesteps) <= 1 < float(pipe.scheduler.timesteps.max()):  # one that tells levels in their place
        trail.timesteps = [float(timestep) for timestep in pipe.scheduler.timesteps][-len(trail.timesteps) :]
    trail.result = to_tensor(made[0], spec.medium, latent=request.params.output_type == "latent")
    trail.texts = {
        f"{name} {number}": text
        for number, evaluation in enumerate(each for step in trail.steps for each in step)
        for name, text in evaluation.texts.items()
    }
    return trail


def _listening(pipe: Any, note: Callable[[Any, Tensor], None]) -> dict[str, Any]:
    """The arguments by which a pipeline tells `note` time step and latents after each step; none if it cannot."""
    takes = signature(pipe.__call__).parameters
    if "callback_on_step_end" in takes:

        def on_step(pipe: Any, step: int, timestep: Any, shown: dict[str, Any]) -> dict[str, Any]:
            note(timestep, shown["latents"])
            return {}

        return {"callback_on_step_end": on_step, "callback_on_step_end_tensor_inputs": ["latents"]}
    if "callback" in takes:
        return {"callback": lambda step, timestep, latents: note(timestep, latents), "callback_steps": 1}
    return {}


def suited(pipe: Any, request: Request) -> Any:
    """`pipe`, or of the same components the pipeline that starts from a picture, or draws a part of it anew, where the
    request has one.
    """
    takes = signature(pipe.__call__).parameters.keys()
    kept = request.region is not None and not request.videos
    if not request.images or not takes.isdisjoint((MASK,) if kept else PICTURE):
        return pipe
    library, name = import_module("diffusers"), type(pipe).__name__.removesuffix("Pipeline")
    for other in KEEPING if kept else CHANGING:
        if hasattr(library, name + other):
            with quiet("diffusers"):
                changing = getattr(library, name + other).from_pipe(pipe, torch_dtype=pipe.dtype)
            changing.set_progress_bar_config(disable=True)
            return changing
    does = "draws a part of a picture anew" if kept else "starts from a picture"
    raise ModelError(f"diffusers has no pipeline beside {type(pipe).__name__} that {does}")


def arguments(pipe: Any, request: Request, spec: Spec) -> dict[str, Any]:
    """What the reference is called with: every value of the request that it has a parameter for."""
    takes = signature(pipe.__call__).parameters
    region, pictures = request.region, [seen(request, picture) for picture in request.images]
    if _reads_clearness(pipe):
        pictures = [picture.convert("RGBA") for picture in pictures]
    last = pictures.pop() if len(pictures) > 1 and "last_image" in takes else None
    extra = asdict(request.extra)
    params = request.params
    negative = request.negative_prompt
    if spec.guidance is not None and len(request.branches) > 1:
        negative = spec.guidance.text(negative)
    if negative and "negative_prompt" not in takes:
        raise ModelError(f"{type(pipe).__name__} takes no negative prompt, so this request cannot be compared")
    if request.videos and "video" not in takes:
        raise ModelError(
            f"{type(pipe).__name__} takes no video, so this request cannot be compared; tests/parity has it"
        )
    if region is not None and MASK not in takes:
        raise ModelError(
            f"{type(pipe).__name__} takes no mask over a video, so this request cannot be compared; tests/parity has it"
        )
    if request.sounds:
        raise ModelError("requests with a sound to start from cannot be compared yet; tests/parity has them")
    known = {
        **asdict(params),
        **extra,
        **{f"_{name}": value for name, value in extra.items()},
        "prompt": request.prompt,
        "negative_prompt": negative,
        **dict.fromkeys(PICTURE, pictures[0] if len(pictures) == 1 else pictures or None),
        "video": [_opened(frame) for video in request.videos for frame in video.pictures[: params.num_frames]] or None,
        "last_image": last,
        MASK: None if region is None else anew(request.images[0], region),
        "max_area": (params.height or 0) * (params.width or 0) or None,
        "enable_prompt_rewrite": False,
        "audio_start_in_s": extra.get("start"),
        "audio_end_in_s": extra.get("start", 0.0) + params.seconds if params.seconds is not None else None,
    }
    given = {
        name: _as_taken(value, str(takes[name].annotation))
        for name, value in known.items()
        if name in takes and value is not None and value != ()
    }
    output_type = "latent" if params.output_type == "latent" else "pt"
    seeded = torch.Generator().manual_seed(request.seed(0))
    return {**given, "generator": seeded, "output_type": output_type, "return_dict": False}


def _reads_clearness(pipe: Any) -> bool:
    """Whether its autoencoder has a fourth channel for what of a picture is clear."""
    autoencoder = pipe.components.get(AUTOENCODER)
    return autoencoder is not None and autoencoder.config.get("input_channels") == 4


def _opened(picture: Picture) -> Image.Image:
    return Image.open(BytesIO(picture.png), formats=("PNG",))


def _as_taken(value: Any, wanted: str) -> Any:
    """`value` as a parameter with that annotation takes it: numbers where it wants a tensor as one row of one."""
    return torch.tensor([value]) if isinstance(value, tuple) and "list" not in wanted and "Tensor" in wanted else value


@contextmanager
def _noting(pipe: Any, networks: Sequence[str], evaluations: list[Evaluation]) -> Iterator[None]:
    """While this lasts, every call of the networks appends an evaluation per item of its batch."""
    hooks = []
    for name in networks:
        network = getattr(pipe, name)
        blocks: dict[str, list[list[Tensor]]] = {}
        hooks += [
            block.register_forward_hook(_block_hook(blocks, kind))
            for kind, child in network.named_children()
            if isinstance(child, nn.ModuleList)
            for block in child
        ]
        hooks.append(network.register_forward_hook(_network_hook(name, blocks, evaluations), with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _block_hook(blocks: dict[str, list[list[Tensor]]], kind: str) -> Any:
    def note(block: nn.Module, args: Any, made: Any) -> None:
        tensors = [each for each in (made if isinstance(made, tuple) else (made,)) if isinstance(each, Tensor)]
        blocks.setdefault(kind, []).append([each.float() for each in tensors])

    return note


def _network_hook(name: str, blocks: dict[str, list[list[Tensor]]], evaluations: list[Evaluation]) -> Any:
    def note(network: nn.Module, args: Any, given: Mapping[str, Any], made: Any) -> None:
        made = made[0] if isinstance(made, tuple) else made if isinstance(made, Tensor | list) else made["sample"]
        predictions = list(made)  # of a tensor [B, ...] or a list, one by item
        told = signature(network.forward).bind_partial(*args, **given).arguments
        _hides(told.get("attention_mask"))
        for item, prediction in enumerate(predictions):
            mine = {kind: [[t[item] for t in block] for block in each] for kind, each in blocks.items()}
            beside = {
                key: part for key, value in told.items() if (part := _item(value, item, len(predictions))) is not None
            }
            evaluations.append(Evaluation(name, "", mine, prediction.float(), beside))
        blocks.clear()

    return note


def _hides(mask: Any) -> None:
    """ModelError for a mask that is there to hide pads, and does not: attention adds floats to its scores."""
    if isinstance(mask, Tensor) and mask.is_floating_point() and bool(mask.max() > 0) and not bool(mask.all()):
        raise ModelError(
            "the pads of this prompt are to be hidden by a mask of floats, ones and zeros, which the attention of "
            "diffusers adds, so it hides none, and cannot be compared; tests/parity has it with a mask that does, and "
            "a prompt and a negative prompt that fill max_sequence_length have no pads"
        )


def _item(value: Any, item: int, items: int) -> Tensor | None:
    """Number `item` of a batch, as a tensor or a list of them; None for anything else."""
    part = value[item] if isinstance(value, Tensor | list) and len(value) == items else None
    return part.float() if isinstance(part, Tensor) and part.is_floating_point() else None
