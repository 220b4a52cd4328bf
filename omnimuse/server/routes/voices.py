"""/v1/audio/voices, for models that speak: which there are, and voices that clients leave here and speak with by name.

OpenAI's shapes, with the list of vLLM-Omni. A voice is a short sound, so only models that speak with the voice of one
take any; it belongs to the key that sent it. Who agreed to it is kept with it, in the sender's words, and so is what is
said in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from omnimuse.core.request import Recording
from omnimuse.core.speech import Speech
from omnimuse.server.errors import refusal
from omnimuse.server.http.bodies import Upload, read_any
from omnimuse.server.http.uploads import Source
from omnimuse.server.openapi import Operation
from omnimuse.server.orders.order import read_sounds, refuse_key
from omnimuse.server.protocol import voices as protocol
from omnimuse.server.service import Service
from omnimuse.server.translate.values import is_nothing, shown
from omnimuse.server.voices import Voice

VOICES = "/v1/audio/voices"
ONE = VOICES + "/{id}"
MAX_CONSENT = 256
"""Characters that say who agreed."""
FIELDS = ("name", "consent", "ref_text", "type")
OPERATIONS = (
    Operation("GET", VOICES, "Voices and languages.", responses={200: protocol.Voices}),
    Operation(
        "POST",
        VOICES,
        "Keep a sound as a voice, for a model that speaks with such.",
        body=protocol.VoiceRequest,
        form=True,
        responses={200: protocol.KeptVoice},
    ),
    Operation("DELETE", ONE, "Remove a voice that is kept.", responses={200: protocol.VoiceDeleted}),
)


def routes(service: Service) -> list[Route]:
    """The endpoints; none for a model that does not speak."""
    if (speech := service.door.limits.speech) is None:
        return []

    async def listed(request: Request) -> Response:
        kept = [] if service.voices is None else await service.voices.listed(request.state.tenant)
        known = protocol.Voices(
            voices=[*speech.voices, *(voice.name for voice in kept)],
            languages=list(speech.languages),
            uploaded_voices=[_told(voice) for voice in kept],
        )
        return JSONResponse(known.model_dump())

    async def keep(request: Request) -> Response:
        refuse_key(request)
        fields, files = await read_any(request)
        if service.voices is None:
            why = "this checkpoint does not speak with the voice of a sound"
            raise refusal("unsupported_task", f"no voice can be left here: {why}; {_instead(speech)}", "audio_sample")
        name, consent, source = _read(fields, files)
        service.voices.check_name(name)
        words = _words(fields, speech)
        [sample] = await read_sounds(service, request, [source])
        voice = await service.voices.add(request.state.tenant, name, consent, sample, words)
        return JSONResponse(_told(voice).model_dump())

    async def remove(request: Request) -> Response:
        called = request.path_params["id"]
        voice = None if service.voices is None else await service.voices.remove(request.state.tenant, called)
        if voice is None:
            raise refusal("voice_not_found", f"no voice {called[:80]!r} is kept; it never was, or was removed", "id")
        return JSONResponse(protocol.VoiceDeleted(id=voice.id).model_dump())

    return [
        Route(VOICES, listed, methods=["GET"]),
        Route(VOICES, keep, methods=["POST"]),
        Route(ONE, remove, methods=["DELETE"]),
    ]


async def voiced(
    service: Service, tenant: str, given: Mapping[str, Any]
) -> tuple[Mapping[str, Any], tuple[Recording, ...]]:
    """The fields of a request for speech, and the sound whose voice it is where they name one that is kept.

    ApiError 400 for one that is not. A voice of the checkpoint stays where it is. What is said in the sound comes with
    it, unless the request says it, too.
    """
    voice = given.get("voice")
    if isinstance(voice, dict):
        if voice.keys() != {"id"} or not isinstance(voice["id"], str):
            raise refusal("invalid_value", f'voice={shown(voice)} is neither a name nor {{"id": "..."}}', "voice")
        voice = voice["id"]
        given = {**given, "voice": voice}
    if service.voices is None or not isinstance(voice, str) or not voice:
        return given, ()
    if not is_nothing(given.get("ref_audio")):
        raise refusal("conflicting_parameters", "voice and ref_audio are two voices; leave one of them out", "voice")
    found = await service.voices.sound(tenant, voice)
    if found is None:
        why = f"is not kept here; {VOICES} lists those that are, and takes more"
        raise refusal("invalid_value", f"voice={shown(voice)} {why}", "voice")
    sound, words = found
    said = {} if words is None or not is_nothing(given.get("ref_text")) else {"ref_text": words}
    return {**{name: value for name, value in given.items() if name != "voice"}, **said}, (sound,)


def _read(fields: Mapping[str, Any], files: Mapping[str, Sequence[Upload]]) -> tuple[str, str, Source]:
    """The name, the consent and the sound of a form; ApiError 400."""
    if (kind := fields.get("type", "audio_sample")) != "audio_sample":
        why = "a voice is the sound of one here; describe it in `instructions`, to a model that takes them"
        raise refusal("unsupported_parameter", f"type={shown(kind)} is not supported: {why}", "type")
    if others := sorted((fields.keys() - set(FIELDS) - {"audio_sample"}) | (files.keys() - {"audio_sample"})):
        message = f"there is no field {shown(others[0])} here; there are audio_sample, {', '.join(FIELDS)}"
        raise refusal("unknown_parameter", message, others[0][:80])
    texts = dict[str, str]()
    for name, longest, what in (("name", 64, "what the voice is called"), ("consent", MAX_CONSENT, "who agreed")):
        value = fields.get(name)
        if value in (None, ""):
            raise refusal("missing_parameter", f"{name} is missing; say {what}", name)
        if not isinstance(value, str) or len(value) > longest or not value.isprintable():
            why = f"is no text of at most {longest} characters that can be seen"
            raise refusal("invalid_value", f"{name}={shown(value)} {why}", name)
        texts[name] = value
    samples = files.get("audio_sample", ())
    if len(samples) != 1:
        why = f"{len(samples)} came; send one in a form"
        raise refusal("missing_parameter", f"audio_sample is one file of a sound, and {why}", "audio_sample")
    return texts["name"], texts["consent"], Source("audio_sample", samples[0].content)


def _words(fields: Mapping[str, Any], speech: Speech) -> str | None:
    """What a form tells is said in the sound; ApiError 400 or RequestError for what cannot be."""
    words = fields.get("ref_text")
    if is_nothing(words):
        return None
    if not isinstance(words, str):
        raise refusal(
            "invalid_value", f"ref_text={shown(words)} is no text; write what is said in the sound", "ref_text"
        )
    speech.check_heard(words)
    return words


def _told(voice: Voice) -> protocol.KeptVoice:
    return protocol.KeptVoice(
        id=voice.id,
        name=voice.name,
        created_at=int(voice.created),
        consent=voice.consent,
        seconds=voice.seconds,
        ref_text=voice.words,
    )


def _instead(speech: Speech) -> str:
    return f"choose `voice` from GET {VOICES}" if speech.voices else "describe the voice in `instructions`"
