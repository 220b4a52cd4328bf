"""What models are asked for by `make features` (`features_page.py`): a feature is a line here, in `FEATURES` for those
that draw and in `TOLD` for those that write and speak.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

from omnimuse.attention.selection import BACKENDS
from omnimuse.core.caches import Fits
from omnimuse.core.config import (
    AttentionConfig,
    CacheConfig,
    CompileConfig,
    Config,
    DecodeConfig,
    ModelConfig,
    OffloadConfig,
    QuantConfig,
    ScheduleConfig,
)
from omnimuse.core.errors import ConfigError
from omnimuse.core.guidance import ONLY_POSITIVE
from omnimuse.core.loras import Lora
from omnimuse.core.params import make_params
from omnimuse.core.pools import DeployConfig
from omnimuse.core.request import Ask, Door
from omnimuse.loader.fits import NAME, write_fits
from omnimuse.media.clip import clip_of
from omnimuse.media.picture import mask_of, picture_of
from omnimuse.parallel.mesh import Mesh
from omnimuse.pipeline.generate import Generate
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.worker.adapters import obstacle
from omnimuse.worker.build import SHAPES, Pass, begin, run
from omnimuse.worker.find import find, pipeline_for
from omnimuse.worker.pack import pack_checkpoint
from tests.carrying import three
from tests.checkpoints import calling, qwen3_omni, qwen25_omni
from tests.checkpoints.calling import LOOK
from tests.checkpoints.families import SPEAKERS, WRITERS
from tests.checkpoints.packed import FILES
from tests.checkpoints.wishes import Family, Wish, chord, film, halves, photo

SIDE = 64
SKIPPING: Mapping[str, Any] = {"kind": "dbcache", "threshold": 9.0, "warm_up": 1}
"""What features leave open of the choice of a step cache: it skips all that it may."""
Prompt = dict[str, Any]


class Impossible(Exception):
    """Nothing is refused: there is no such thing here. Its text says why."""


class Untried(Exception):
    """It may well work, and no test can have it. Its text says why."""


@dataclass(frozen=True)
class Teller:
    """What writes or speaks, by the names and the attributes that a family which draws has: its tests' first request,
    and no comparison with diffusers.
    """

    name: str
    arch: str
    build: Callable[[Path], Path]
    wishes: tuple[Wish, ...]
    apart: str = "diffusers has nothing of the kind"


@dataclass(frozen=True, eq=False)
class Stand:
    """A family's tiny checkpoint, which is asked."""

    family: Family | Teller
    folder: Path
    starts: dict[str, tuple[str, str]] = field(default_factory=dict)
    files: str = ""
    others: dict[str, Stand] = field(default_factory=dict)
    passes: ClassVar[tuple[Pass, ...]] = SHAPES

    def packed(self, how: str) -> Stand:
        """The same, whose files are packed so, measured where this is; made once."""
        if how == self.files:
            return self
        if how not in self.others:
            made = self.folder.with_name(f"{self.folder.name}-{how}".replace(" ", "-"))
            PACKS[how](self.folder, made)
            if (self.folder / NAME).exists():
                measured(made)
            self.others[how] = replace(self, folder=made, starts={}, files=how, others={})
        return self.others[how]

    @cached_property
    def door(self) -> Door:
        """What it lets in."""
        return find(self.config({})).door

    @cached_property
    def pipeline(self) -> type[Pipeline]:
        """What runs it."""
        return pipeline_for(self.door.spec)

    @property
    def pools(self) -> DeployConfig:
        """Three pools that its stages could be in."""
        return three(self.pipeline.stages)

    def config(self, topics: Mapping[str, Any]) -> Config:
        """How an engine over it is started with these topics, and in this `dtype`, if they name one."""
        others = {name: value for name, value in topics.items() if name != "dtype"}
        dtype = topics.get("dtype", "float32")
        return Config(ModelConfig(str(self.folder), dtype=dtype, device="cpu"), **others)

    def refusal(self, config: Config, *, worn: bool = False) -> str:
        """What the build's `passes`, which are those that need no memory, say against a start like this, or with `worn`
        against adapters then; empty: nothing. Asked once each.
        """
        key = str(config)
        if key not in self.starts:
            try:
                under = run(begin(config, Mesh.planned(config.parallel)), self.passes)
                under.resources.close()
                self.starts[key] = "", obstacle(under)
            except ConfigError as problem:
                self.starts[key] = str(problem), ""
        started, adapters = self.starts[key]
        return started or (f"loras cannot be worn: {adapters}" if worn and adapters else "")

    def told(self, reason: str) -> str:
        """`reason` in words that name neither the model, unless a library does not know it, nor a file of it, nor what
        tiny checkpoints have for sizes.
        """
        reason = re.sub(r" at role '\w+' (on \w+ in \S+) with head_dim=\d+", r" \1", reason)
        reason = re.sub(r" \(\d+ x [^)]*\)", "", reason)
        reason = re.sub(rf"{re.escape(str(self.folder.parent))}/[^\s:,;]+", "this file", reason)
        return re.sub(rf"(?<!knows no pipeline )(this )?\b{self.door.spec.family}\b", "this model", reason)


def measured(folder: Path) -> Path:
    """The checkpoint in `folder` as `omnimuse calibrate` leaves it, which MagCache needs: its residuals do not grow.
    What it has chosen skips all that it may.
    """
    write_fits(folder / NAME, Fits(ratios=(1.0,), auto="dbcache,threshold=9.0,warm_up=1"), {})
    return folder


@dataclass(frozen=True)
class Feature:
    """Something that is switched on: for an engine by `topics` of its configuration, by its part of the choice of a
    step `cache`, by `axes` of its ranks or where it is `pooled`, between two ticks where it `rests`, for one request by
    what `give` puts beside the prompt, by `params` and by `ask`; or that the checkpoint has, by how its `files` are
    packed. `also` is what else it needs; `paired`, whether the page asks what it goes together with.
    """

    name: str
    about: str
    topics: Mapping[str, Any] = field(default_factory=dict)
    cache: Mapping[str, Any] = field(default_factory=dict)
    axes: Mapping[str, int] = field(default_factory=dict)
    pooled: bool = False
    rests: bool = False
    give: Callable[[Stand, Prompt], Prompt] | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    ask: Mapping[str, Any] = field(default_factory=dict)
    files: str = ""
    also: Callable[[Stand], None] | None = None
    paired: bool = True


def from_text(stand: Stand, prompt: Prompt) -> Prompt:
    """The prompt alone."""
    return {name: prompt.get(name) for name in ("prompt", "negative_prompt")}


def with_picture(stand: Stand, prompt: Prompt) -> Prompt:
    """With the pictures that a test gives it, else with one."""
    given = next(
        (wish.asked for wish in stand.family.wishes if wish.images), {"images": [picture_of(photo(SIDE, SIDE))]}
    )
    kept = {name: given[name] for name in ("images", "mask", "pad") if name in given}
    return {**from_text(stand, prompt), **kept}


def with_video(stand: Stand, prompt: Prompt) -> Prompt:
    """With the video that a test gives it, else with one of five frames."""
    given = next((wish.asked for wish in stand.family.wishes if wish.video), {"videos": [clip_of(film(SIDE, SIDE, 5))]})
    return {**from_text(stand, prompt), **{name: given[name] for name in ("images", "videos", "mask") if name in given}}


def with_mask(stand: Stand, prompt: Prompt) -> Prompt:
    """With a picture or, where it lies over that, a video, and a mask over it."""
    if stand.door.limits.masks_videos:
        return with_video(stand, prompt)
    prompt = with_picture(stand, prompt)
    first = prompt["images"][0]
    return {**prompt, "mask": mask_of(halves(first.width, first.height))}


def with_pad(stand: Stand, prompt: Prompt) -> Prompt:
    """With a picture that is to become larger."""
    return {**with_picture(stand, prompt), "pad": [0, 16, 0, 0]}


def with_sound(stand: Stand, prompt: Prompt) -> Prompt:
    """With a sound to start from."""
    return {**prompt, "sounds": [chord(16000, 0.5, 2)]}


def guided(stand: Stand) -> None:
    """Some request must have branches that can be shared out."""
    asks = [Ask(wish.asked, wish.params) for wish in stand.family.wishes]
    if all(stand.door.make_request(ask, 0.0, 1).branches == ONLY_POSITIVE for ask in asks):
        raise Impossible("there is no guidance whose branches could be shared out")


def compared(stand: Stand) -> None:
    """`omnimuse parity` must have something to compare with."""
    if stand.family.apart:
        raise ConfigError(f"`omnimuse parity` says: {stand.family.apart}")


def shown(kind: str, name: str, thing: Any) -> Callable[[Stand, Prompt], Prompt]:
    """With `thing` beside the prompt, under `name`: shown by a message where what reads it is there for text."""

    def give(stand: Stand, prompt: Prompt) -> Prompt:
        if not stand.door.spec.writes:
            return {**prompt, name: [thing]}
        [said] = spoken(prompt, "what is it?")
        return {"prompt": None, "messages": [{**said, "content": [{"type": kind}, *said["content"]]}], name: [thing]}

    return give


def spoken(prompt: Prompt, text: str) -> list[dict[str, Any]]:
    """The one message of `prompt`, or else one that says `text`."""
    return prompt.get("messages") or [{"role": "user", "content": [{"type": "text", "text": text}]}]


def with_tools(stand: Stand, prompt: Prompt) -> Prompt:
    """As what somebody says who has a tool to be called."""
    return {"prompt": None, "messages": spoken(prompt, "what is a heron?"), "tools": [LOOK]}


def makes(medium: str) -> Callable[[Stand], None]:
    """A request must be able to end with this medium."""

    def check(stand: Stand) -> None:
        if medium not in stand.pipeline.results:
            raise Impossible(f"what comes out is {' and '.join(stand.pipeline.results)}")

    return check


def remembers(stand: Stand) -> None:
    """There must be a loop that reads one token after the other for a text."""
    if not any(isinstance(stage, Generate) for stage in stand.pipeline.stages):
        raise Impossible("no text is written, whose beginning could be there already")


def pack_once(folder: Path, made: Path) -> None:
    """As `omnimuse quantize` packs the checkpoint in `folder`."""
    model = ModelConfig(str(folder), dtype="float32", device="cpu")
    pack_checkpoint(Config(model, quantize=QuantConfig({"": "int8"})), made)


PARITY = (
    "`omnimuse parity` compares it with diffusers part by part; where that needs torchvision, tests give it what reads "
    "pictures without"
)
PACKED_FILES = {
    "bitsandbytes": "files that bitsandbytes has packed, in 4 bits or 8",
    "GGUF": "a single file in blocks of 4 to 8 bits",
    "torchao": "files that torchao has packed",
    "fp8 files": "floats of 8 bits with a scale for each block of weights, as transformers saves them",
    "scaled fp8": "a single file of floats of 8 bits with a scale for each layer, as ComfyUI has them",
}
"""Files whose weights are packed: the networks that draw, write or speak."""
PACKS: Mapping[str, Callable[[Path, Path], object]] = {**FILES, "packed once": pack_once}
"""How the files of a checkpoint are packed, by the features that this is."""
FEATURES = (
    Feature("text", "drawn from a prompt alone", give=from_text, paired=False),
    Feature("picture in", "starts from pictures, or is shown them", give=with_picture),
    Feature("video in", "starts from a video", give=with_video),
    Feature("sound in", "starts from a sound", give=with_sound),
    Feature("mask", "a part of a picture, or of a video, is drawn anew, the rest is kept", give=with_mask),
    Feature("pad", "a picture goes on beyond its edges", give=with_pad),
    Feature("several", "several outputs of one prompt", params={"num_outputs_per_prompt": 3}),
    Feature("previews", "pictures of what is being drawn", ask={"previews": 1}),
    Feature("scheduler", "euler, heun, unipc or dpm++, and a shift, for one request", params={"scheduler": "heun"}),
    Feature("company", "different requests share forwards, and each gets what it gets alone within 1e-5"),
    Feature("invariant", "the same, to the bit", {"schedule": ScheduleConfig(tier="invariant")}),
    Feature("exact", "to the bit, every row in a forward of its own", {"schedule": ScheduleConfig(tier="exact")}),
    Feature("bfloat16", "computed in bfloat16", {"dtype": "bfloat16"}),
    Feature("TeaCache", "steps that change little are skipped", cache={"kind": "teacache", "threshold": 1e6}),
    Feature("DBCache", "the blocks between the first and the last are skipped", cache={"kind": "dbcache"}),
    Feature(
        "MagCache",
        "steps are skipped by what `omnimuse calibrate` has measured",
        cache={"kind": "magcache"},
    ),
    Feature("TaylorSeer", "what skipped blocks would have added is continued as a series", cache={"order": 1}),
    Feature(
        "step masks",
        "a mask says which steps may be skipped",
        cache={"mask": "medium"},
        params={"num_inference_steps": 8},
    ),
    Feature("auto", "a step cache as `omnimuse calibrate` has chosen it", {"cache": CacheConfig("auto")}),
    Feature("int8", "weights of 8 bits (docs/quantization.md)", {"quantize": QuantConfig({"": "int8"})}),
    Feature("int4", "weights of 4 bits", {"quantize": QuantConfig({"": "int4"})}),
    Feature("int8-dynamic", "and what they are multiplied with", {"quantize": QuantConfig({"": "int8-dynamic"})}),
    Feature("fp8", "weights of 8 bits that are floats", {"quantize": QuantConfig({"": "fp8"})}),
    Feature("fp8-dynamic", "and what they are multiplied with", {"quantize": QuantConfig({"": "fp8-dynamic"})}),
    *(Feature(name, about, files=name) for name, about in PACKED_FILES.items()),
    Feature("packed once", "a folder that `omnimuse quantize` has packed", files="packed once"),
    Feature("LoRA", "adapters, other ones for each request", params={"loras": (Lora("style.safetensors"),)}),
    Feature("components", "networks take turns on the device", {"offload": OffloadConfig("components")}),
    Feature("layers", "blocks come in one at a time", {"offload": OffloadConfig("layers")}),
    Feature("sleep", "weights leave memory, and who has begun goes on to the bit when they are back", rests=True),
    Feature("compile", "compiled blocks", {"compile": CompileConfig("blocks")}),
    Feature("tensor", "ranks hold a part of each block's weights", axes={"tensor": 2}),
    Feature("ulysses", "ranks share a row's tokens by heads", axes={"ulysses": 2}),
    Feature("ring", "ranks share a row's tokens, and pass keys on", axes={"ring": 2}),
    Feature("shard", "ranks that share tokens keep blocks in parts", axes={"shard": 2}),
    Feature("pipe", "ranks hold some of the blocks each", axes={"pipe": 2}),
    Feature("cfg", "ranks evaluate a branch of the guidance each", axes={"cfg": 2}, also=guided),
    Feature("teams", "ranks draw one request together, or several in teams", axes={"ulysses": 2, "elastic": True}),
    Feature("pools", "its stages in three pools, the same to the byte (docs/deploy.md)", pooled=True),
    Feature("tiles", "pictures are decoded in tiles", {"decode": DecodeConfig(tiling=True)}),
    Feature("tiles on ranks", "ranks decode some of the tiles each", axes={"vae_tiles": 2}),
    Feature("block timings", "a request is told what every block took", ask={"blocks": True}),
    Feature("recording", "a trace of all that runs meanwhile (docs/profiling.md)", rests=True),
    Feature("parity", PARITY, also=compared, paired=False),
)
ATTENDING = ("reference", "flex", "sdpa_flash", "sdpa_math", "per role")
"""Choices of attention of which pairs are asked: what a CPU has beside `sdpa`, which all other pairs have."""
ATTENTION = (
    *(
        Feature(
            name,
            f"attention computed by `{name}` (docs/devices.md)",
            {"attention": AttentionConfig(name)},
            paired=name in ATTENDING,
        )
        for name in BACKENDS
    ),
    Feature(
        "per role",
        "one backend for a role of attention, another one for the others",
        {"attention": AttentionConfig("sdpa", {"self": "reference"})},
    ),
)
"""Backends that families which draw can be started with."""
STANDING = ("FluxPipeline-dev", "StableAudioPipeline", "WanPipeline-2.1-I2V")
"""Families that are asked first what goes together: the first that has both features."""
SCHEMES = ("int8", "int4", "int8-dynamic", "fp8", "fp8-dynamic")
ALIKE = (
    *("several", "company", "invariant", "exact", *SCHEMES, *PACKED_FILES),
    *("LoRA", "components", "layers", "sleep"),
)
ALONE = ("ulysses", "ring", "shard", "cfg", "teams")
"""What nothing has that writes or speaks."""
SKIPS = ("TeaCache", "DBCache", "MagCache", "TaylorSeer", "step masks")
"""What nothing has that writes or speaks alone; what draws besides skips steps of its pictures."""
PICTURES = ("previews", "scheduler")
"""What could be asked of the pictures of an answer."""
TOLD = (
    Feature("text out", "what is asked for ends with a text", also=makes("text")),
    Feature("sound out", "with a voice, alone or beside the text", also=makes("audio")),
    Feature("picture out", "with a picture where the text asks for one", also=makes("image")),
    Feature("pictures shown", "a message shows pictures", give=shown("image", "images", picture_of(photo(SIDE, SIDE)))),
    Feature("videos shown", "a message shows videos", give=shown("video", "videos", clip_of(film(SIDE, SIDE, 4), 2.0))),
    Feature(
        "sounds heard", "a message, or the request, has sounds", give=shown("audio", "sounds", chord(16000, 0.5, 1))
    ),
    Feature("streams", "text and sound come in pieces while they are made, and these are the whole", ask={"chunks": 1}),
    Feature("tools", "functions that an answer may ask for, where the template tells of them", give=with_tools),
    Feature("reuse", "a beginning that was read before is not read again", also=remembers),
    *(feature for feature in FEATURES if feature.name in ALIKE),
    *(replace(each, also=makes("image")) for each in FEATURES if each.name in PICTURES),
    *(feature for feature in FEATURES if feature.name in SKIPS),
    *(feature for feature in FEATURES if feature.name in ("bfloat16", "packed once", "block timings", "recording")),
    *(replace(feature, paired=False) for feature in FEATURES if feature.name in ALONE),
    *(feature for feature in FEATURES if feature.name in ("compile", "tensor", "pipe", "pools")),
    *(replace(each, also=makes("image")) for each in FEATURES if each.name == "tiles"),
    Feature(
        "attention",
        "a backend asked for by its name, for what draws beside",
        {"attention": AttentionConfig("reference")},
        paired=False,
    ),
)
"""What is asked of models that write and speak."""
STANDING_TOLD = (
    "Qwen3ForCausalLM",
    "Qwen3OmniMoeForConditionalGeneration",
    "TalkAndDrawPipeline",
    "Qwen3TTSForConditionalGeneration-base",
)
"""As `STANDING`, of those that write and speak."""


def _tellers() -> Iterator[Teller]:
    told = {"seed": 7, "num_outputs_per_prompt": 1}
    for writer in WRITERS:
        wish = Wish(str(writer.prompts[0]), None, make_params(told, dict(writer.choices[0])))
        yield Teller(writer.name, writer.arch, CALLING.get(writer.name, writer.build), (wish,))
    for speaker in SPEAKERS:
        text, choices, seed = speaker.wishes[0]
        wish = Wish(text, None, make_params({**told, "seed": seed}, dict(choices)), sound=speaker.sound)
        yield Teller(speaker.name, speaker.arch, speaker.build, (wish,))


CALLING: Mapping[str, Callable[[Path], Path]] = {
    "Qwen3ForCausalLM": calling.build,
    "Qwen3OmniMoeForConditionalGeneration": partial(calling.build_thinking, build=qwen3_omni.build),
    "Qwen2_5OmniForConditionalGeneration": partial(calling.build_thinking, build=qwen25_omni.build),
}
"""By the name of what writes: its checkpoint whose template tells of tools, which is asked in place of the other."""
TELLING = tuple(_tellers())
