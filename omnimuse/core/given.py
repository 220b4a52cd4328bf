"""What comes with a prompt, checked against what the model takes: pictures, videos, sounds, which part is drawn anew.

`core/request.py` asks for it, and a request inherits it. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omnimuse.core.errors import RequestError
from omnimuse.core.sources import Clip, Picture, Recording, Region, region_of, region_of_video
from omnimuse.core.spec import Limits, Size, Spec


@dataclass(frozen=True, kw_only=True)
class Given:
    """The part of a request that came with its prompt. With a `region`, the rest of the first picture is kept."""

    images: tuple[Picture, ...] = ()
    region: Region | None = None
    sounds: tuple[Recording, ...] = ()
    videos: tuple[Clip, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """How many there are of each."""
        return {"images": len(self.images), "sounds": len(self.sounds), "videos": len(self.videos)}

    @property
    def sizes(self) -> list[Size]:
        """Those of the videos or, without any, of the pictures, the first one with its margins."""
        sizes = [(each.width, each.height) for each in self.videos or self.images]
        return sizes if self.region is None or self.videos else [self.region.size_around(self.images[0]), *sizes[1:]]


def given_of(prompt: Mapping[str, Any], spec: Spec, limits: Limits, *, masks: bool) -> Given:
    """What came with `prompt`; RequestError for what is none of it, or more than the model takes.

    `masks`: it can draw a part of a picture anew.
    """
    images, sounds = _images(prompt.get("images"), spec, limits), _sounds(prompt.get("sounds"), spec, limits)
    videos = _videos(prompt.get("videos"), spec, limits)
    if limits.masks_videos:
        region = region_of_video(prompt.get("mask"), prompt.get("pad"), videos)
    else:
        region = _region(prompt, images, spec, masks)
    return Given(images=images, region=region, sounds=sounds, videos=videos)


def _region(prompt: Mapping[str, Any], images: Sequence[Picture], spec: Spec, masks: bool) -> Region | None:
    named = [name for name in ("mask", "pad") if prompt.get(name) is not None]
    if named and not masks:
        why = "cannot draw a part of a picture anew; leave it out, and say in the prompt what to draw"
        raise RequestError(f"{named[0]} means nothing to {spec.family}, which {why}", named[0])
    region = region_of(prompt.get("mask"), prompt.get("pad"), images)
    if region is None and spec.fills:
        why = "fills in a part of a picture, and nothing says which; give a mask or a pad"
        raise RequestError(f"{spec.family} {why}", "mask")
    return region


def _sounds(given: Any, spec: Spec, limits: Limits) -> tuple[Recording, ...]:
    if not isinstance(given or (), list | tuple):
        raise RequestError(f"sounds must be a list of sounds, got {type(given).__name__}", "sounds")
    sounds, most = tuple(given or ()), limits.max_sounds
    if sounds and not most:
        raise RequestError(f"{spec.family} starts from no sound; leave out `sounds`", "sounds")
    if len(sounds) > most:
        raise RequestError(f"{len(sounds)} sounds were given; {spec.family} takes at most {most}", "sounds")
    for sound in sounds:
        if not isinstance(sound, Recording):
            raise RequestError(f"sounds must hold recordings, got {type(sound).__name__}", "sounds")
    return sounds


def _videos(given: Any, spec: Spec, limits: Limits) -> tuple[Clip, ...]:
    if not isinstance(given or (), list | tuple):
        raise RequestError(f"videos must be a list of videos, got {type(given).__name__}", "videos")
    videos = tuple(given or ())
    if videos and not limits.max_videos:
        raise RequestError(f"this {spec.family} starts from no video; leave out `videos`", "videos")
    if len(videos) > limits.max_videos:
        most = limits.max_videos
        raise RequestError(f"{len(videos)} videos were given; {spec.family} takes at most {most}", "videos")
    if len(videos) < limits.min_videos:
        least = limits.min_videos
        raise RequestError(
            f"{len(videos)} videos were given; {spec.family} needs at least {least} (`videos`)", "videos"
        )
    for video in videos:
        if not isinstance(video, Clip):
            raise RequestError(f"videos must hold clips, got {type(video).__name__}", "videos")
    return videos


def _images(given: Any, spec: Spec, limits: Limits) -> tuple[Picture, ...]:
    if not isinstance(given or (), list | tuple):
        raise RequestError(f"images must be a list of pictures, got {type(given).__name__}", "images")
    most, images = limits.max_images, tuple(given or ())
    if images and not most:
        raise RequestError(f"this {spec.family} works from text only; leave out `images`", "images")
    if len(images) < limits.min_images:
        least = limits.min_images
        raise RequestError(
            f"{len(images)} pictures were given; {spec.family} needs at least {least} (`images`)", "images"
        )
    if len(images) > most:
        raise RequestError(f"{len(images)} pictures were given; {spec.family} takes at most {most}", "images")
    for image in images:
        if not isinstance(image, Picture):
            raise RequestError(f"images must hold pictures, got {type(image).__name__}", "images")
    return images
