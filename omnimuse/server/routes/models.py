"""GET /v1/models: the model that is served, and all that a user interface must know to ask for something legal."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from omnimuse.core.caches import offered
from omnimuse.core.effort import EFFORT, steps_of
from omnimuse.core.messages import MAX_WRITTEN
from omnimuse.core.params import AnswerParams, DiffusionParams
from omnimuse.core.request import MAX_PROMPT, Door
from omnimuse.loader.identity import Taught
from omnimuse.media.formats import FORMATS
from omnimuse.server.openapi import Operation
from omnimuse.server.orders.order import check_model
from omnimuse.server.protocol.models import Capabilities, Model, ModelList
from omnimuse.server.service import Service
from omnimuse.server.translate.field import MAX_OUTPUTS
from omnimuse.server.translate.parts import able

OPERATIONS = (
    Operation("GET", "/v1/models", "The models that this server serves.", responses={200: ModelList}),
    Operation("GET", "/v1/models/{model}", "One model and its capabilities.", responses={200: Model}),
)

_TASK_TYPES = {
    "text-to-image": "T2I",
    "image-to-image": "I2I",
    "text-to-video": "T2V",
    "image-to-video": "I2V",
    "video-to-video": "V2V",
    "text-to-audio": "T2A",
}
"""SGLang's short words for tasks."""


def routes(service: Service) -> list[Route]:
    """The endpoints of models."""
    able = capabilities(service.door, service.taught)

    def described(name: str) -> Model:
        kind = _TASK_TYPES.get(service.door.tasks[0], "")
        reads = service.door.limits.max_sequence_length if service.door.spec.writes else None
        return Model(id=name, task_type=kind, dtypes=dtypes(service), capabilities=able, max_model_len=reads)

    async def listed(request: Request) -> Response:
        return JSONResponse(ModelList(data=[described(name) for name in service.options.served]).model_dump())

    async def one(request: Request) -> Response:
        if not request.path_params["model"]:  # a slash too many
            return await listed(request)
        check_model(service, request.path_params["model"])
        return JSONResponse(described(request.path_params["model"]).model_dump())

    return [Route("/v1/models", listed), Route("/v1/models/{model:path}", one)]


def dtypes(service: Service) -> dict[str, str]:
    """The format that each component computes in; empty until a worker is ready."""
    chosen = service.workers.place.get("dtype")
    parts = {name: part for name, part in service.door.spec.components.items() if part.network}
    return {name: part.dtype or chosen for name, part in parts.items()} if chosen else {}


def capabilities(door: Door, taught: Taught | None = None) -> Capabilities:
    """What the model behind `door` can be asked for."""
    limits, spec = door.limits, door.spec
    speech = limits.speech
    known = [part for part in fields(spec.extra) if speech is None or part.name not in speech.closed]
    extra = {part.name: part.metadata.get("default", part.default) for part in known}
    honoured = door.honoured - {"output_type"} - limits.refuses.keys() - ({"loras"} if not door.adapters else set())
    pictures, sound = spec.medium == "image", limits.sound
    return Capabilities(
        medium=spec.medium,
        takes=[*(["text"] if spec.prompted else []), *able(door)],
        gives=_gives(door),
        calls=limits.calls,
        tasks=list(door.tasks),
        family=spec.family,
        size_multiple=limits.size_multiple,
        max_side=limits.max_side,
        min_frames=limits.min_frames,
        max_frames=limits.max_frames,
        frame_step=limits.frame_step,
        max_prompt=MAX_WRITTEN if spec.writes else MAX_PROMPT if spec.prompted else 0,
        min_images=limits.min_images,
        max_images=limits.max_images,
        masks=door.masks,
        masks_videos=limits.masks_videos,
        fills=spec.fills,
        max_outputs=MAX_OUTPUTS if pictures or spec.writes else 1,
        max_sounds=limits.max_sounds,
        min_videos=limits.min_videos,
        max_videos=limits.max_videos,
        max_seconds=sound.seconds if sound is not None else 0.0,
        sample_rate=sound.rate if sound is not None else None,
        parameters=sorted(honoured | ({"negative_prompt"} if _takes_negative(door) else set())),
        defaults=_chosen(door.defaults) | ({} if door.cache.off else {"cache": str(door.cache)}),
        fixed=_chosen(limits.fixed),
        formats=[format_.lower() for format_ in dict.fromkeys(FORMATS.get(spec.medium, {}).values())],
        qualities={}
        if door.defaults.num_inference_steps is None
        else {level: steps_of(level, door.defaults.num_inference_steps) for level in EFFORT},
        extra=extra,
        adapters=sorted(door.adapters or ()),
        caches=offered(door.fits) if "cache" in honoured else [],
        choices={} if speech is None else speech.choices,
        needs=[] if speech is None else sorted(speech.needed),
        library=spec.library,
        notes=dict(spec.notes),
        draws={} if taught is None else {topic: list(words) for topic, words in taught.words.items()},
        only_side=None if taught is None else taught.side,
    )


def _gives(door: Door) -> list[str]:
    """The media of what can come of a request, the chief one first."""
    spec, limits = door.spec, door.limits
    speaks = not spec.writes or issubclass(spec.extra, AnswerParams)
    beside = {"text": spec.converses, "image": limits.draws, "audio": limits.sound is not None and speaks}
    return [spec.medium, *(medium for medium, can in beside.items() if can and medium != spec.medium)]


def _chosen(params: DiffusionParams) -> dict[str, Any]:
    return {name: value for name, value in asdict(params).items() if value is not None and name != "output_type"}


def _takes_negative(door: Door) -> bool:
    """Whether a negative prompt works with some guidance that can be chosen."""
    strong = replace(door.defaults, guidance_scale=5.0, true_cfg_scale=5.0)
    negative = "blurry"
    return door.spec.refusal(negative, door.limits.fixed.over(strong)) is None
