"""Prompts as Python programs give them, and as a request takes them: what they name is opened, and what messages show
lies beside these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

from omnimuse.core.messages import SHOWN
from omnimuse.core.params import DiffusionParams, WatchParams

Prompt = str | Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""A prompt, or a dict with `prompt` and optionally `negative_prompt`, `images`, `videos`, `sounds`, `mask` and `pad`.

Pictures are Pillow images or names of files, sounds `media.sound.Sound` or names of files, videos whatever
`media.clip.open_clip` takes: names or bytes of files, lists of pictures, arrays. `mask` is a picture over the
first of `images`, which is drawn anew where the mask is white or, if that is transparent anywhere, where it is that;
`pad` (left, above, right, below) is by how many pixels it becomes larger. A model that writes takes `messages`, too,
dicts with a `role` and a `content`; a list of them is a prompt. A content is a text or, where the model is shown
something, a list of parts: `{"type": "text", "text": ...}`, `{"type": "image", "image": ...}`, and `audio` and `video`
likewise. Beside messages there may be `tools`, functions as OpenAI has them, of which `Result.calls` has the calls, and
a `tool_choice`; a message may have `tool_calls`, and one with the role "tool" answers one by its `tool_call_id`.
Instead of a text it takes `tokens`, too, whole numbers as its tokenizer has them."""

Tools = Sequence[Mapping[str, Any]]
"""Functions that a model may ask for: `{"type": "function", "function": {"name": ..., "parameters": ...}}`."""


def is_talk(given: Any) -> bool:
    """Whether `given` is a conversation: a list of messages."""
    return isinstance(given, list | tuple) and bool(given) and isinstance(given[0], Mapping) and "role" in given[0]


def given_as(prompt: Prompt, tools: Tools | None = None) -> str | Mapping[str, Any]:
    """`prompt` as an ask has it, with `tools` if there are any."""
    given: Any = {"messages": prompt} if is_talk(prompt) else prompt
    if tools is None:
        return given
    return {**given, "tools": tools} if isinstance(given, Mapping) else {"prompt": given, "tools": tools}


def hears(params: DiffusionParams) -> bool:
    """Whether videos are heard while they are watched."""
    chosen = params.extra
    if isinstance(chosen, Mapping):  # what is wrong with it, the door says
        return chosen.get("use_audio_in_video") is True
    return isinstance(chosen, WatchParams) and chosen.use_audio_in_video


def with_tracks(prompt: Mapping[str, Any]) -> Mapping[str, Any]:
    """`prompt`, opened, with the track of every video as the sound right behind it, unless another sound is there."""
    clips = prompt.get("videos") or ()
    if not any(clip.track for clip in clips):
        return prompt
    videos, sounds = iter(clips), iter(prompt.get("sounds") or ())
    messages = prompt.get("messages")
    found, told = list[Any](), [_tracked(message, videos, sounds) for message in messages or ()]
    for _, heard in told:
        found += heard
    left = [*sounds]
    if not messages and not left:
        left = [clip.track for clip in clips if clip.track]
    said = {"messages": [message for message, _ in told]} if messages else {}
    return {**prompt, **said, "sounds": found + left, "videos": [replace(clip, track=None) for clip in clips]}


def _tracked(message: Any, videos: Iterator[Any], sounds: Iterator[Any]) -> tuple[Any, list[Any]]:
    """A message with a part for every track of its videos, and what is heard in it."""
    if not isinstance(message, Mapping) or not isinstance(content := message.get("content"), list | tuple):
        return message, []
    parts, found = list[Any](), list[Any]()
    kinds = [part.get("type") if isinstance(part, Mapping) else None for part in content]
    for part, kind, then in zip(content, kinds, [*kinds[1:], None], strict=True):
        parts.append(part)
        if kind == "audio":
            found += islice(sounds, 1)
        elif kind == "video" and (clip := next(videos, None)) is not None and clip.track and then != "audio":
            parts.append({"type": "audio"})
            found.append(clip.track)
    return {**message, "content": parts}, found


def with_sources(prompt: Prompt, params: DiffusionParams, *, watched: bool = False) -> str | Mapping[str, Any]:
    """`prompt` with its pictures, videos and sounds opened; RequestError for what cannot be read. Videos that are to be
    `watched` are read to their end, others as far as they are made use of.
    """
    prompt = given_as(prompt)
    if not isinstance(prompt, Mapping):
        return prompt  # what it is if it is no text either, the door says
    prompt = _apart(prompt)
    opened: dict[str, Any] = dict(prompt)
    if isinstance(prompt.get("images") or None, list | tuple):  # what is wrong with anything else, the door says
        from omnimuse.media.picture import open_picture

        opened["images"] = [open_picture(image) for image in prompt["images"]]
    if prompt.get("mask") is not None:
        from omnimuse.media.clip import open_film_mask
        from omnimuse.media.picture import open_mask

        over = prompt.get("videos")
        opened["mask"] = open_film_mask(prompt["mask"], params.num_frames) if over else open_mask(prompt["mask"])
    if isinstance(prompt.get("sounds") or None, list | tuple):
        from omnimuse.media.recording import open_sound

        opened["sounds"] = [open_sound(sound) for sound in prompt["sounds"]]
    if isinstance(prompt.get("videos") or None, list | tuple):
        from omnimuse.media.clip import open_changed, open_watched

        read = partial(open_watched, heard=hears(params)) if watched else partial(open_changed, most=params.num_frames)
        opened["videos"] = [read(video) for video in prompt["videos"]]
    return with_tracks(opened) if watched else opened


def _apart(prompt: Mapping[str, Any]) -> Mapping[str, Any]:
    """`prompt` with what its messages show (`{"type": "image", "image": ...}`) in lists of their own."""
    messages = prompt.get("messages")
    if not isinstance(messages, list | tuple):
        return prompt
    shown: dict[str, list[Any]] = {name: list(prompt.get(name) or ()) for name in SHOWN.values()}
    said = [_one_apart(message, shown) for message in messages]
    return {**prompt, "messages": said, **{name: given for name, given in shown.items() if given}}


def _one_apart(message: Any, shown: Mapping[str, list[Any]]) -> Any:
    if not isinstance(message, Mapping) or not isinstance(content := message.get("content"), list | tuple):
        return message
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in SHOWN and kind in part:
            shown[SHOWN[kind]].append(part[kind])
            part = {name: value for name, value in part.items() if name != kind}
        parts.append(part)
    return {**message, "content": parts}
