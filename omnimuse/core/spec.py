"""Facts about a model family, as data: which components it has, what it can do, and its defaults.

Each `models/<family>/spec.py` makes one `Spec`; the request checks, the loader, the command line and the server read
it. No torch here, so that `omnimuse models` and the server's front process stay light.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from omnimuse.core.caches import Fits
from omnimuse.core.errors import RequestError
from omnimuse.core.guidance import Guidance
from omnimuse.core.params import DiffusionParams, FamilyParams, GenerationParams, TokenParams
from omnimuse.core.speech import Speech

Configs = Mapping[str, Mapping[str, Any]]
"""The configuration of every component of a checkpoint, by component name; under `OPTIONS` what it says besides."""

OPTIONS = "options"
"""Where `Configs` has what a checkpoint says of itself besides its components; no component may be called so."""

CALLS = "calls"
"""Where `Configs` has the tokenizers whose chat templates tell of tools, by component name: with what a call begins."""

GENERATION = "generation_config.json"
"""How a language model writes; `Configs` has that of a component under the name of both, with a slash between."""


def calls(configs: Configs, tokenizer: str = "tokenizer") -> bool:
    """Whether a model that reads conversations by the template of this component may ask for tools."""
    return tokenizer in configs.get(CALLS, {})


def always(config: Mapping[str, object]) -> bool:
    """Whatever is said."""
    return True


@dataclass(frozen=True)
class Component:
    """One part of a pipeline: the classes a checkpoint may name for it, and who builds it.

    `network` is the import path `module:Class` of our own network, which `Class.from_config(config)` makes; empty means
    that diffusers or transformers build it, and `part` then is the path of the one module of it that is needed (a
    language model's body without its head) or, of a processor, `"tokenizer"`; no other is built or read. `rules` is the
    import path of our network's weight-name rules, or of what makes them of (checkpoint, name, network), `aliases` of
    other names that adapters have for its layers, `keep_float32` name patterns that stay in float32; `dtype` is what
    the whole of it computes in, whatever the engine's is (empty: that). Of a component that is not `built` only the
    configuration is read; no classes means any class. `tells` are the defaults of a request that it names. What is
    `inside` another component has its folder, its class and its files, of which it is a part; it is there only `where`
    that one's configuration says so, or that of the component which it `asks`.
    """

    classes: tuple[str, ...]
    network: str = ""
    part: str = ""
    rules: str = ""
    aliases: str = ""
    keep_float32: tuple[str, ...] = ()
    dtype: Literal["", "float32"] = ""
    optional: bool = False
    built: bool = True
    tells: Callable[[Configs], DiffusionParams] | None = None
    inside: str = ""
    asks: str = ""
    where: Callable[[Mapping[str, object]], bool] = always


Size = tuple[int, int]
"""Width and height in pixels."""

Sizing = Callable[[Sequence[Size]], Size]
"""(sizes of the pictures that came with a prompt) -> size of what is made; RequestError for one that is not taken."""


@dataclass(frozen=True)
class SoundLimits:
    """Of a model that makes sound: `rate` samples a second in `channels`, at most `seconds` of them (0: it does not
    say), and from how many sounds it can start; of one that speaks, what of its `speech` can be chosen.
    """

    rate: int
    channels: int = 2
    seconds: float = 0.0
    max_inputs: int = 0
    speech: Speech | None = None


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Of a model of videos: it makes 1 + k * `frame_step` frames, from `min_frames` to `max_frames`; of others, one.

    From `min_videos` to `max_videos` videos come with a prompt; if it `masks_videos`, a part of one can be drawn anew.
    """

    frame_step: int = 1
    min_frames: int = 1
    max_frames: int = 1
    min_videos: int = 0
    max_videos: int = 0
    masks_videos: bool = False

    def frames_in(self, seconds: float, fps: float | None, *, too_many: bool) -> int:
        """The number of frames, of those that this model counts in, which lasts nearest to `seconds`; RequestError if
        it makes no such long ones, unless they may be `too_many`.
        """
        rate = fps or 1.0
        frames = 1 + self.frame_step * round(max(0.0, min(seconds * rate, 1e9) - 1) / self.frame_step)
        if frames > self.max_frames and not too_many:
            most = self.max_frames / rate
            raise RequestError(f"seconds={seconds:g} is too long for this model; use at most {most:.4g}", "seconds")
        return frames


@dataclass(frozen=True)
class Limits(Frames):
    """What a checkpoint can be asked for: sizes in pixels, sequence lengths in text tokens.

    A schedule needs `min_steps`. From `min_images` to `max_images` pictures come with a prompt; sides in the
    proportions of a picture become legal by `rounding`, unless `sized` has a rule of its own. `fixed` holds what the
    family lets people choose but this checkpoint takes at one value only, `refuses` what this checkpoint cannot take at
    all, with the reason. `sound` is there where sound comes out, alone or beside a video; one that writes and `draws`
    answers with a picture beside the text, one that `calls` may ask for tools. Of a model of `flow` matching the
    schedule can be chosen, too; the door finds that out.
    """

    size_multiple: int
    max_side: int
    max_sequence_length: int
    min_images: int = 0
    max_images: int = 0
    fixed: DiffusionParams = DiffusionParams()
    refuses: Mapping[str, str] = field(default_factory=dict)
    rounding: Literal["nearest", "down", "up"] = "nearest"
    min_steps: int = 1
    sound: SoundLimits | None = None
    draws: bool = False
    calls: bool = False
    flow: bool = False
    sized: Sizing | None = None

    @property
    def speech(self) -> Speech | None:
        """What can be chosen of its speech; None for one that does not speak."""
        return None if self.sound is None else self.sound.speech

    @property
    def max_sounds(self) -> int:
        """How many sounds may come with a prompt."""
        return 0 if self.sound is None else self.sound.max_inputs


def says_nothing(configs: Configs) -> str:
    """Its configurations do not tell a variant from the others."""
    return ""


@dataclass(frozen=True)
class Variant:
    """Defaults of published checkpoints of one family that want different ones; `ids` are hub or bundled ids.

    `says` gives the reason why a checkpoint with these configurations can only be this variant, or an empty text.
    """

    name: str
    ids: tuple[str, ...]
    defaults: DiffusionParams
    says: Callable[[Configs], str] = says_nothing


@dataclass(frozen=True)
class Named:
    """A name that a checkpoint goes by, and how that is known."""

    id: str
    why: str


@dataclass(frozen=True)
class Recognised:
    """The variant whose defaults a checkpoint gets, and why; not `sure` where only its family is known."""

    variant: Variant
    why: str
    sure: bool = True

    @property
    def id(self) -> str:
        """The hub id of what it is taken for; empty where that is not known."""
        return self.variant.ids[0] if self.sure and self.variant.ids else ""


MEDIA = ("image", "video", "audio", "text")
"""What a pipeline may make."""

Objection = Callable[[str | None, DiffusionParams], str | None]
"""(negative prompt, complete parameters) -> why they make no sense together, or None."""


@dataclass(frozen=True)
class Foreign:
    """Who runs a whole pipeline where no family of ours does: its name, and what that means, for people.

    `objection` refuses what would make no sense to it. One that is not `prompted` reads no text; in one that `shares`,
    outputs share forwards. `door` is the import path of the module of `compat/` that makes it (`compat/door.py`).
    """

    library: str
    notes: Mapping[str, str]
    objection: Objection
    door: str
    prompted: bool = True
    shares: bool = False


@dataclass(frozen=True)
class Spec:
    """Everything the house knows about one family without loading it.

    `arch` is the class name that its folders say; `also` are other pipelines with the same components and weights,
    from which a folder may have been saved, with a star where any name will do that no other family has. `supported`
    names the parameters the family honours beyond those of every model; any other that a request sets is refused.
    `limits` computes from a checkpoint's configurations what it can be asked for; `guidance` says how it is guided, if
    more than one prediction goes into a step. `fits` holds what is published of the family for step caches. `foreign`
    is set where a library runs the whole pipeline. A family that `fills` in a part of a picture is always told which.
    """

    arch: str
    family: str
    tasks: tuple[str, ...]
    components: Mapping[str, Component]
    defaults: DiffusionParams
    supported: frozenset[str]
    limits: Callable[[Configs], Limits]
    guidance: Guidance | None = None
    variants: tuple[Variant, ...] = ()
    also: tuple[str, ...] = ()
    extra: type[FamilyParams] = FamilyParams
    fits: Fits = Fits()
    summary: str = ""
    foreign: Foreign | None = None
    fills: bool = False

    @property
    def library(self) -> str:
        """The library that runs the whole pipeline; empty where a family of ours does."""
        return self.foreign.library if self.foreign else ""

    @property
    def prompted(self) -> bool:
        """Whether it reads a prompt; otherwise it makes what it does of pictures alone."""
        return self.foreign is None or self.foreign.prompted

    @property
    def notes(self) -> Mapping[str, str]:
        """What it means that a library runs the pipeline."""
        return self.foreign.notes if self.foreign else {}

    def told(self, configs: Configs) -> DiffusionParams:
        """The defaults that a checkpoint's own configurations name."""
        found = DiffusionParams()
        for component in self.components.values():
            found = found if component.tells is None else component.tells(configs).over(found)
        return found

    def refusal(self, negative_prompt: str | None, params: DiffusionParams) -> str | None:
        """Why a negative prompt and complete parameters make no sense together, or None."""
        if self.foreign is not None:
            return self.foreign.objection(negative_prompt, params)
        if self.guidance is not None:
            return self.guidance.objection(negative_prompt, params)
        nothing = f"negative_prompt means nothing to {self.family}, which takes no guidance from one; leave it out"
        return nothing if negative_prompt else None

    @property
    def medium(self) -> str:
        """What it is there for: one of `MEDIA`. A pipeline may make others beside it."""
        return self.tasks[0].rpartition("-")[2]

    @property
    def writes(self) -> bool:
        """Whether it is there for text."""
        return self.medium == "text"

    @property
    def converses(self) -> bool:
        """Whether text can come out, and a conversation go in."""
        return issubclass(self.extra, GenerationParams)

    @property
    def reads_tokens(self) -> bool:
        """Whether tokens by their numbers can go in: what is there for text goes on from them."""
        return self.writes and self.converses

    @property
    def by_token(self) -> bool:
        """Whether it makes one token after the other from the first to the last, text or speech."""
        return issubclass(self.extra, TokenParams) and self.medium in ("text", "audio")

    def variant(self, model_id: str) -> Variant:
        """The variant whose ids contain `model_id` (case and revision ignored), else the family's own defaults."""
        return self.named(model_id) or Variant(self.family, (), self.defaults)

    def named(self, name: str) -> Variant | None:
        """The variant with this id, whole or its last part, or with this name; case and revision are ignored."""
        wanted = name.split("@")[0].rstrip("/").lower()
        for variant in self.variants:
            known = [one.lower() for one in variant.ids]
            if wanted in (variant.name.lower(), *known) or wanted.split("/")[-1] in [o.split("/")[-1] for o in known]:
                return variant
        return None

    def recognise(self, names: Sequence[Named], configs: Configs) -> Recognised:
        """Which variant a checkpoint with these names (the surest first) and configurations is."""
        for name in names:
            if (variant := self.named(name.id)) is not None:
                return Recognised(variant, f"{name.why} ({name.id})")
        for variant in self.variants:
            if reason := variant.says(configs):
                return Recognised(variant, reason)
        own = Variant(self.family, (), self.defaults)
        if self.library:
            return Recognised(own, f"{self.library} has them for this class")
        kinds = ", ".join(variant.name for variant in self.variants)
        return Recognised(own, f"nothing says which of {kinds} or others it is", sure=False)
