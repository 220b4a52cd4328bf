"""Guests that `make features` asks: a pipeline of each kind that comes from elsewhere, and what is asked of them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from omnimuse.core.config import Config
from omnimuse.core.output import Preview
from omnimuse.core.pools import DeployConfig, PoolConfig
from omnimuse.core.request import Ask
from omnimuse.engine.local import start
from omnimuse.worker.build import SHAPES, WEIGHTS, Pass
from tests.compat.guests import FROM_DIFFUSERS, GUESTS, Guest
from tools.feature_list import ATTENTION, FEATURES, Impossible, Stand, Untried

KINDS: Mapping[str, str] = {
    "StableDiffusionXLPipeline": "of diffusers, with a UNet",
    "LTXPipeline": "of diffusers, with a transformer that cache-dit knows; it films",
    "StableVideoDiffusionPipeline": "of diffusers; it films a picture",
    "LongCatAudioDiTPipeline": "of diffusers; it makes sound",
    "DocumentedPipeline": "to the guide of vLLM-Omni, with its loop in `forward`",
    "DocumentedStepPipeline": "to that guide, in steps, whose loop is the engine's",
    "TwoListsStepPipeline": "in steps, with two lists of blocks whose tokens ranks may share",
    "DocumentedEditStepPipeline": "in steps, from a picture",
    "DocumentedCustomStepPipeline": "in steps, of a checkpoint of its own kind",
    "ExpertsVideoStepPipeline": "in steps, with two networks; it films",
    "SoundAudioPipeline": "to that guide, around a network of diffusers; it makes sound",
    "ComposedSmallPipeline": "composed as SGLang Diffusion's guide has it, of its stock stages",
    "ComposedMediumWholePipeline": "composed, with a loop of its own",
    "ComposedMotionPipeline": "composed, with two networks; it films",
}
"""One guest of each kind, and what kind that is."""
EVERY = {guest.name: guest for guest in (*FROM_DIFFUSERS.values(), *GUESTS.values())}
VISITING: tuple[Guest, ...] = tuple(EVERY[name] for name in KINDS)


def shows(stand: Stand) -> None:
    """Something must be seen between its steps, which only a guest that takes some can tell."""
    with closing(start(stand.config({}))) as engine:
        wish = stand.family.wishes[0]
        request = engine.make_request(Ask(wish.asked, wish.params, previews=1))
        engine.submit(request)
        while not engine.idle:
            if any(isinstance(event, Preview) for event in engine.tick()):
                return
    raise Impossible("no picture can be made of what is there between its steps")


OTHERWISE: Mapping[str, Mapping[str, Any]] = {
    "previews": {"also": shows},
    "cfg": {"also": None},
    "tiles on ranks": {"axes": {"tensor": 2, "vae_tiles": 2}},
}
"""What branches its guidance has, only a guest itself knows. Ranks that share tiles share weights here, as more guests
can than tokens.
"""
EXTRAS = ("bitsandbytes", "torchao")
"""Packed files that libraries read by a package which this one does not need."""
ASKED_OF_GUESTS = (
    *(replace(each, **OTHERWISE.get(each.name, {})) for each in FEATURES if each.name != "parity"),
    *ATTENTION,
)
"""They are compared with diffusers by tests of their own."""


@dataclass(frozen=True, eq=False)
class Visit(Stand):
    """A guest's tiny checkpoint, which is asked; by all passes: what its networks are is known once they are there."""

    family: Guest  # type: ignore[assignment]
    passes: ClassVar[tuple[Pass, ...]] = (*SHAPES, *WEIGHTS)

    def packed(self, how: str) -> Stand:
        """The same, whose networks are packed so, where they are components. What a library reads by an extra is not
        tried, whether that is installed here or not.
        """
        if how in EXTRAS and "layers" not in self.family.ways:  # its blocks are not declared: they are a library's
            raise Untried(f"a library reads its networks, by the package {how}, which the tests do without")
        if how and not (self.folder / "transformer").exists() and not (self.folder / "unet").exists():
            raise Impossible("nothing packs a checkpoint of its own kind")
        return super().packed(how)

    @property
    def pools(self) -> DeployConfig:
        """Pools by names that stages may have: what it becomes is in none."""
        return DeployConfig((PoolConfig("first", ("denoise",)), PoolConfig("last", ("decode",))))

    def config(self, topics: Mapping[str, Any]) -> Config:
        """The same, with the plugins that have it."""
        chosen = super().config(topics)
        return replace(chosen, model=replace(chosen.model, plugins=self.family.plugins))
