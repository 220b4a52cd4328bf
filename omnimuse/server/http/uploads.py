"""What becomes of the pictures, videos and sounds that clients send: counted, fetched where allowed, decoded apart.

Routes turn what came into `Source`s and get `Picture`s, `Clip`s and `Recording`s of our own making back, which
processes in a sandbox made; nobody else in the server sees a byte that a client sent as one. The front process itself
decodes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, cast

from omnimuse.core.errors import CapacityError
from omnimuse.core.request import Clip, Picture, Recording
from omnimuse.core.spec import Limits
from omnimuse.media.fetch import FetchError, FetchRules, fetch, from_data_url
from omnimuse.media.foreign import Meaning, PictureError, PictureLimits, read_picture
from omnimuse.media.foreign_clip import ClipError, ClipLimits, kind_of, read_foreign_clip
from omnimuse.media.foreign_sound import RecordingLimits, SoundError, is_sound, read_foreign_track, read_recording
from omnimuse.media.sandbox import CLIPS, Sandbox
from omnimuse.server.errors import ApiError, refusal
from omnimuse.server.http.bodies import Upload
from omnimuse.server.http.strict_json import DataUrl
from omnimuse.server.options import ServeOptions

logger = logging.getLogger(__name__)

MOST_PIXELS = 8 * 2**20  # bytes of the pictures of a request, before they are compressed
MOST_SAMPLES = 31 * 2**20  # bytes of its sound
MOST_FRAMES = 40 * 2**20  # bytes of its video as PNG files
MOST_MASKS = 12 * 2**20  # bytes of the masks over that; all fit into one message
_BESIDE = 2**20  # bytes of a message to a worker that are no pixels
_RGB = 3
Role = Literal["changed", "mask", "watched", "heard"]
"""What a video is for: to be changed, to say what of another is, or to be watched, perhaps heard, too."""
VIDEOS = "video/mp4, video/webm, video/*"
"""What is asked of an address that a video is fetched from."""
SOUNDS = "audio/wav, audio/flac, audio/*"
"""The same of a sound."""
FILM_SECONDS = 60.0
"""Until a video is read; that of the largest frames that are taken takes about half as long."""


@dataclass(frozen=True)
class Source:
    """A picture as a client gave it: its bytes or, if there are none, where they are; `name` is its field."""

    name: str
    content: bytes | bytearray = field(default=b"", repr=False)
    url: str | None = field(default=None, repr=False)


class Uploads:
    """Makes pictures of what clients send. Lives on one event loop; close it."""

    def __init__(
        self,
        limits: PictureLimits | None = None,
        rules: FetchRules | None = None,
        sandbox: Sandbox | None = None,
        sounds: RecordingLimits | None = None,
        clips: ClipLimits | None = None,
    ) -> None:
        self._limits, self._rules = limits or PictureLimits(), rules or FetchRules()
        self._sounds = sounds or RecordingLimits()
        self._sandbox = sandbox or Sandbox()
        self._clips = clips or ClipLimits()
        self._theatre = Sandbox(together=1, seconds=FILM_SECONDS, command=CLIPS)

    @staticmethod
    def of(options: ServeOptions, limits: Limits) -> Uploads:
        """As the operator and the model want it: no picture is kept larger than a worker can use or be sent."""
        sent = (MOST_PIXELS - _BESIDE) // (_RGB * max(1, limits.max_images))
        kept = PictureLimits(keep_pixels=min(sent, limits.max_side**2))
        longest = 0.0 if limits.sound is None else limits.sound.seconds
        sounds = RecordingLimits(keep_bytes=MOST_SAMPLES // max(1, limits.max_sounds))
        if longest:  # of a model that says no bound, as much is heard as is usual
            sounds = replace(sounds, milliseconds=int(longest * 1000) + 1)
        rules = FetchRules(frozenset(host.lower() for host in options.fetch_hosts))
        keep = MOST_FRAMES // max(1, limits.max_videos)
        clips = ClipLimits(keep_pixels=min(kept.max_pixels, limits.max_side**2), keep_bytes=keep)
        return Uploads(kept, rules, sounds=sounds, clips=clips)

    async def read(
        self,
        sources: Sequence[Source],
        most: int,
        tenant: str = "",
        hold: Callable[[int], None] = lambda size: None,
    ) -> tuple[Picture, ...]:
        """The pictures of `sources`, at most `most`; ApiError 400 says which is wrong. Cancelling stops the work.

        Tenants take turns at the decoders. `hold` is told how many bytes are needed for pictures that are fetched; it
        raises where there is no room.
        """
        self._begin(sources, most, "pictures", hold)
        return tuple([await self._read(source, tenant) for source in sources])

    async def read_mask(
        self, source: Source, tenant: str = "", hold: Callable[[int], None] = lambda size: None
    ) -> Picture:
        """The mask in `source`; as `read`."""
        self._begin([source], 1, "masks", hold)
        return await self._read(source, tenant, "mask")

    async def read_sounds(
        self,
        sources: Sequence[Source],
        most: int,
        tenant: str = "",
        hold: Callable[[int], None] = lambda size: None,
    ) -> tuple[Recording, ...]:
        """The sounds of `sources`, at most `most`, of each as much as the model can use; as `read`."""
        self._begin(sources, most, "sounds", hold)
        return tuple([await self._read_sound(source, tenant) for source in sources])

    async def read_videos(
        self,
        sources: Sequence[Source],
        most: int,
        frames: int,
        tenant: str = "",
        hold: Callable[[int], None] = lambda size: None,
        role: Role = "changed",
    ) -> tuple[Clip, ...]:
        """The videos of `sources`, at most `most`, the first `frames` frames of each; as `read`. Of one that is to be
        watched it is so many of those that are looked at. Those that are heard or changed have their tracks.

        Of masks, whose frames are smaller files, less is kept.
        """
        self._begin(sources, most, "videos", hold)
        keep = MOST_MASKS if role == "mask" else self._clips.keep_bytes
        limits = replace(self._clips, frames=frames, keep_bytes=keep, watched=role in ("watched", "heard"))
        return tuple([await self._read_video(source, limits, tenant, role) for source in sources])

    def _begin(self, sources: Sequence[Source], most: int, what: str, hold: Callable[[int], None]) -> None:
        """Refuse what is more than `most`, and hold memory for what is fetched, decoded and let go one by one."""
        if len(sources) > most:
            message = f"{len(sources)} {what} came, and this model takes at most {most}; leave the others out"
            raise refusal("invalid_value", message, sources[most].name)
        if any(_is_elsewhere(source) for source in sources):
            hold(self._rules.max_bytes)

    async def tell_lacking(self) -> None:
        """Log what of the confinement of decoders this system does not offer; to be done once, at the start."""
        try:
            lacking = await self._sandbox.lacking()
        except CapacityError as error:
            logger.warning("no process to read pictures can be started now (%s)", error)
            return
        for name, why in lacking.items():
            logger.warning("the processes that read pictures run without %s: %s", name, why)

    async def close(self) -> None:
        """End the processes that are kept ready for the next picture, and the next video."""
        await self._sandbox.close()
        await self._theatre.close()

    async def _read(self, source: Source, tenant: str, work: Meaning = "picture") -> Picture:
        try:
            return await read_picture(self._sandbox, await self._content(source), self._limits, tenant, work)
        except (PictureError, FetchError) as error:
            raise _refused(error, source.name) from None

    async def _read_sound(self, source: Source, tenant: str) -> Recording:
        try:
            content = await self._content(source, replace(self._rules, accept=SOUNDS))
            if is_sound(content) or kind_of(content) is None:
                return await read_recording(self._sandbox, content, self._sounds, tenant)
            # As telephones and browsers record: a file of the kinds of videos, perhaps without pictures.
            if (found := await read_foreign_track(self._theatre, content, self._sounds, tenant)) is None:
                raise SoundError("nothing is heard in the file; send one with a sound in it")
            return found
        except (SoundError, FetchError) as error:
            message = str(error).replace("the picture", "the sound").replace("image/png", "audio/wav")
            refused = isinstance(error, FetchError) and error.code == "url_not_allowed"
            raise refusal(
                "url_not_allowed" if refused else "invalid_audio", f"{source.name}: {message}", source.name
            ) from None

    async def _read_video(self, source: Source, limits: ClipLimits, tenant: str, role: Role) -> Clip:
        try:
            content = await self._content(source, replace(self._rules, accept=VIDEOS))
            made = await read_foreign_clip(self._theatre, content, limits, tenant)
            if role == "changed" and made.fps:
                return await self._with_sound(made, content, tenant)
            if role != "heard":
                return made
            return replace(made, track=await read_foreign_track(self._theatre, content, self._sounds, tenant))
        except (ClipError, SoundError, FetchError) as error:
            message = str(error).replace("the picture", "the video").replace("image/png", "video/mp4")
            refused = isinstance(error, FetchError) and error.code == "url_not_allowed"
            raise refusal(
                "url_not_allowed" if refused else "invalid_video", f"{source.name}: {message}", source.name
            ) from None

    async def _with_sound(self, clip: Clip, content: bytes, tenant: str) -> Clip:
        """`clip`, of which something is made that keeps its sound; where that cannot be read, with the reason."""
        limits = replace(self._sounds, milliseconds=int(1000 * len(clip.frames) / clip.fps))
        try:
            return replace(clip, track=await read_foreign_track(self._theatre, content, limits, tenant))
        except SoundError as error:
            return replace(clip, lost=str(error))

    async def _content(self, source: Source, rules: FetchRules | None = None) -> bytes:
        if isinstance(source.url, DataUrl):
            return await asyncio.to_thread(from_data_url, source.url.content, self._rules.max_bytes)
        return cast(bytes, source.content) if source.url is None else await fetch(source.url, rules or self._rules)


def _is_elsewhere(source: Source) -> bool:
    return source.url is not None and source.url[:5].lower() != "data:"


def uploaded(files: Mapping[str, Sequence[Upload]], urls: Sequence[str], name: str = "url") -> list[Source]:
    """The pictures of a request: uploads called image, other uploads, then addresses, whose field is called `name`."""
    fields = sorted(files.items(), key=lambda named: named[0] != "image")
    parts = [(_numbered(field, at, len(found)), part) for field, found in fields for at, part in enumerate(found)]
    places = [Source(_numbered(name, index, len(urls)), url=url) for index, url in enumerate(urls)]
    return [*(Source(field, part.content) for field, part in parts), *places]


def _numbered(name: str, index: int, count: int) -> str:
    return name if count == 1 else f"{name}[{index}]"


def _refused(error: PictureError | FetchError, name: str) -> ApiError:
    # Each word stands here, where the table of codes is checked against what the server says.
    code = {"image_too_large": "image_too_large", "url_not_allowed": "url_not_allowed"}.get(error.code, "invalid_image")
    return refusal(code, f"{name}: {error}", name)
