"""What a checkpoint folder says about itself: components, configurations, completeness.

In the diffusers layout every component has a folder of its own; in that of transformers a model and its tokenizer lie
together in one, and so do the components of layouts that families have of their own (`core/layouts.py`).

Read by the worker's build, the command line and the server's front process. Reads small JSON files and file names only;
no torch, no weights.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from omnimuse.core.calls import OPEN
from omnimuse.core.errors import ModelError
from omnimuse.core.layouts import Files, Piece, laid_out
from omnimuse.core.spec import CALLS, GENERATION, OPTIONS, Configs
from omnimuse.loader.eight_bits import SAID, eight_bits, with_note
from omnimuse.loader.files import AGAIN, PICKLES, SINGLE, few, read_json, weight_files
from omnimuse.loader.template_file import template_beside, template_in
from omnimuse.loader.voices import VOICES, read_voices

INDEX = "model_index.json"
BORROWS = "_borrows_from"
"""The entry of an index that names a folder beside this one, which has the components whose folders are not here."""
MODEL, TOKENIZER, PROCESSOR, SPEAKING = "model", "tokenizer", "processor", "voices"
"""The components of a folder in the layout of transformers."""
BESIDE = ("speech_tokenizer",)
"""Folders in it that are components of their own."""
TOKENIZER_CONFIG = "tokenizer_config.json"
PREPARING = "preprocessor_config.json"
PACKERS = ("bitsandbytes", "torchao")
"""Libraries whose packed weights are read (`libraries.py`), by what configurations call them."""
CONFIGS = (
    "config.json",
    "scheduler_config.json",
    "guider_config.json",
    PREPARING,
    "processor_config.json",
    TOKENIZER_CONFIG,
)
"""Where a component's configuration may be; the first that exists is read."""

TOKENIZERS = ("Tokenizer", "TokenizersBackend")
"""Endings of the classes of tokenizers."""
OTHERWISE = "<function="
"""What chat templates have that tell of calls in another way."""
SCHEDULER = "Scheduler"
"""The ending of the classes of schedulers."""
WEIGHTLESS = (
    *(SCHEDULER, *TOKENIZERS, "Guidance"),
    *("Voices", "Processor", "ProcessorFast", "ProcessorPil", "FeatureExtractor"),
)
"""Endings of the classes of components that have no weights."""

_NAME = re.compile(r"[A-Za-z]\w*")
_FOLDER = re.compile(r"[A-Za-z0-9][\w.-]*")


class Checkpoint:
    """The checkpoint in `folder`.

    `arch` is the pipeline class it was saved from, `components` maps names to (library, class), `empty` holds the names
    that the checkpoint lists as null, `options` everything else in `model_index.json` (such as `boundary_ratio`), or
    in the layout of transformers (`flat`) what its generation_config.json says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.components: dict[str, tuple[str, str]] = {}
        self.empty: set[str] = set()
        self.options: dict[str, Any] = {}
        self.lender: Path | None = None
        self._wholes: dict[str, str] = {}
        self.flat = not (folder / INDEX).is_file()
        self.files: Files | None = None
        if self.flat:
            names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
            self.files = laid_out(names)
            self.arch = self._take_flat() if self.files is None else self._take_pieces(self.files)
            return
        content = read_json(folder / INDEX)
        arch = content.get("_class_name")
        if not isinstance(arch, str):
            raise ModelError(f"{folder / INDEX} has no `_class_name` that says which pipeline this is; {AGAIN}")
        self.arch = arch
        if (lender := content.get(BORROWS)) is not None:
            self.lender = _beside(folder, lender)
        for name, value in content.items():
            self._take(name, value)

    def _take_flat(self) -> str:
        """The class of the model in a folder of transformers' layout: its components are `MODEL`, `TOKENIZER` and,
        where there are pictures or sounds to prepare, `PROCESSOR`, and `SPEAKING` where there are voices.
        """
        path = self.folder / CONFIGS[0]
        named = _architectures(path) if path.is_file() else []
        if (self.folder.parent / INDEX).is_file() or not named:
            raise ModelError(_not_a_checkpoint(self.folder))
        self.components[MODEL] = ("transformers", named[0])
        self._take_tokenizer()
        if (self.folder / PREPARING).is_file():
            kind = read_json(self.folder / PREPARING).get("processor_class")
            self.components[PROCESSOR] = ("transformers", str(kind or "Processor"))
        if (self.folder / VOICES).is_file():
            self.components[SPEAKING] = ("", "Voices")
        for name in BESIDE:
            if (self.folder / name / CONFIGS[0]).is_file():
                [kind] = _architectures(self.folder / name / CONFIGS[0]) or ["a network without a class"]
                self.components[name] = ("transformers", kind)
        if (self.folder / GENERATION).is_file():
            self.options.update(read_json(self.folder / GENERATION))
        return named[0]

    def _take_pieces(self, files: Files) -> str:
        """The class of a model whose folder is laid out as `files` says."""
        self.components |= {name: ("", piece.kind) for name, piece in files.pieces.items()}
        self._take_tokenizer()
        return files.arch

    def _take_tokenizer(self) -> None:
        """That in the folder itself, if there is one."""
        settings = self.folder / TOKENIZER_CONFIG
        if settings.is_file() or (self.folder / "tokenizer.json").is_file():
            kind = read_json(settings).get("tokenizer_class") if settings.is_file() else None
            self.components[TOKENIZER] = ("transformers", str(kind or "TokenizersBackend"))

    def _take(self, name: str, value: Any) -> None:
        match value:
            case _ if name.startswith("_"):
                return
            case [None, None]:
                self.empty.add(name)
            case [str(library), str(kind)] if _NAME.fullmatch(name):
                self.components[name] = (library, kind)
            case [str(), str()]:
                raise ModelError(f"{self.folder / INDEX} names a component {name!r}; only plain names are allowed")
            case _:
                self.options[name] = value

    @property
    def why(self) -> str:
        """What in its folder says that it is of the class `arch`."""
        if self.files is not None:
            return f"it holds {few(self.files.marks)}"
        return f"{CONFIGS[0] if self.flat else INDEX} names {self.arch}"

    def divide(self, name: str, whole: str) -> None:
        """What is called `name` is a part of the component `whole`, in its files."""
        self.components[name], self._wholes[name] = self.components[whole], whole

    def only(self, names: Collection[str]) -> None:
        """Forget the components that are not in `names`: nobody will ask for them, so they need not be there."""
        self.components = {name: kind for name, kind in self.components.items() if name in names}

    def path(self, component: str) -> Path:
        """The folder of `component`."""
        if component not in self.components:
            raise ModelError(
                f"{self.folder} has no component {component!r}; {INDEX} names {few(sorted(self.components), 20)}"
            )
        whole = self._wholes.get(component, component)
        if self.flat and whole not in BESIDE:
            return self.folder
        own = self.folder / whole
        return own if self.lender is None or own.is_dir() else self.lender / whole

    def weights(self, component: str) -> Path:
        """Where the weights of `component` are: its folder, or the one file of them."""
        piece = self._piece(component)
        return self.path(component) / piece.weights if piece else self.path(component)

    def _piece(self, component: str) -> Piece | None:
        """What the layout of the folder says of `component`, or of that of which it is a part."""
        return self.files.pieces.get(self._wholes.get(component, component)) if self.files else None

    def has_weights(self, component: str) -> bool:
        """Whether `component` is a network (and not a scheduler, tokenizer or processor)."""
        if (piece := self._piece(component)) is not None:
            return bool(piece.weights)
        return not plain_class(self.components[component][1]).endswith(WEIGHTLESS)

    def config(self, component: str) -> Mapping[str, Any]:
        """The configuration of `component`; empty for a tokenizer or processor that stores none. Of a scheduler it has
        the class, too.
        """
        folder = self.path(component)
        if (piece := self._piece(component)) is not None:
            return self._said(piece)
        names: tuple[str, ...] = CONFIGS
        if component == SPEAKING and self.flat:
            return read_voices(folder / VOICES)
        if folder == self.folder:  # several have theirs in this folder
            own = {TOKENIZER: TOKENIZER_CONFIG, PROCESSOR: PREPARING}
            names = (own.get(component, CONFIGS[0]),)
        kind = self.components[component][1]
        about = {"_class_name": kind} if kind.endswith(SCHEDULER) else {}
        for name in names:
            if (folder / name).is_file():
                return {**about, **_as_of_floats(self._noted(folder / name))}
        if about or self.has_weights(component):
            raise ModelError(f"{folder / CONFIGS[bool(about)]} does not exist; {AGAIN}")
        return {}

    def _noted(self, path: Path) -> Mapping[str, Any]:
        """What a configuration says; that of a network may be noted beside it."""
        content = read_json(path)
        return with_note(path.parent, content) if path.name == CONFIGS[0] else content

    def _said(self, piece: Piece) -> Mapping[str, Any]:
        """What is known of a piece, and what its files say; how its weights were packed, whichever of them says it."""
        found: dict[str, Any] = dict(piece.known)
        for file, key in piece.files.items():
            content = dict(self._noted(self.folder / file)) if (self.folder / file).is_file() else {}
            packed = {SAID: content.pop(SAID)} if SAID in content else {}
            found |= ({key: content} if key else content) | packed
        return _as_of_floats(found)

    def sources(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The files that say what this checkpoint is, by name, with what they say."""
        if self.flat:
            for name in self.files.marks if self.files else CONFIGS[:1]:
                if name.endswith(".json"):
                    yield name, read_json(self.folder / name)
        else:
            yield INDEX, read_json(self.folder / INDEX)
        for name in sorted(self.components):
            path = (self.folder if self.flat else self.path(name).parent) / name / CONFIGS[0]
            if path.is_file():
                yield f"{name}/{CONFIGS[0]}", read_json(path)

    @cached_property
    def configs(self) -> Configs:
        """The configuration of every component, by component name, and how those write that do; `options` under
        `OPTIONS`, and under `CALLS` which tokenizers tell of tools.
        """
        found: dict[str, Any] = {OPTIONS: self.options, **{name: self.config(name) for name in self.components}}
        calling = {name: OPEN for name, (_, kind) in self.components.items() if self._tells_of_tools(name, kind)}
        found |= {CALLS: calling} if calling else {}
        writing = () if self.flat else [f"{name}/{GENERATION}" for name in self.components]
        return found | {name: read_json(self.folder / name) for name in writing if (self.folder / name).is_file()}

    def _tells_of_tools(self, component: str, kind: str) -> bool:
        """Whether the chat template of a tokenizer tells of tools, and calls of them as `core/calls.py` reads them."""
        if not plain_class(kind).endswith(TOKENIZERS) or not (folder := self.path(component)).is_dir():
            return False
        source = template_in(folder) or template_beside(folder)
        if not isinstance(source, str) or OPEN not in source or OTHERWISE in source:
            return False
        from omnimuse.loader.chat import asks_for  # jinja, for those who need it

        return asks_for(source, "tools")

    def check(
        self, required: Mapping[str, tuple[str, ...]], optional: Collection[str] = (), weights: bool = True
    ) -> None:
        """Refuses a checkpoint that cannot be built: ModelError says what is missing or of the wrong kind.

        `required` maps component names to the classes that are understood, those in `optional` may be absent or null.
        Without `weights` the networks' weight files need not be there (`--load dummy`).
        """
        for name, classes in required.items():
            if name in self.components:
                self._check_component(name, classes, weights)
            elif name not in optional:
                self._refuse_absent(name, classes)

    def _refuse_absent(self, name: str, classes: tuple[str, ...]) -> None:
        said = "lists it as null" if name in self.empty else f"names {few(sorted(self.components), 20) or 'none'}"
        raise ModelError(
            f"{self.folder} has no component {name!r}, which {self.arch} needs ({' or '.join(classes)}); "
            f"{INDEX} {said}. Use a complete checkpoint"
        )

    def _check_component(self, name: str, classes: tuple[str, ...], weights: bool) -> None:
        kind = self.components[name][1]
        if plain_class(kind) not in {plain_class(allowed) for allowed in classes}:
            raise ModelError(
                f"component {name!r} of {self.folder} is a {kind}; {self.arch} works here with {' or '.join(classes)}"
            )
        if not self.path(name).is_dir():
            raise ModelError(f"{INDEX} names component {name!r}, but {self.path(name)} does not exist; {AGAIN}")
        self.config(name)
        if weights and self.has_weights(name):
            weight_files(self.weights(name))

    def incomplete(self) -> str | None:
        """Why the files of this checkpoint cannot all be there; None if they are."""
        try:
            self.check({name: (kind,) for name, (_, kind) in self.components.items()})
        except ModelError as problem:
            return str(problem)
        return None

    def fingerprint(self) -> str:
        """A cheap key of the content, from names, sizes and times of change: what was cached under another is stale."""
        lines = []
        for folder in [self.folder, *([self.lender] if self.lender else ())]:
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                about = path.stat()
                lines.append(f"{path.relative_to(folder).as_posix()} {about.st_size} {about.st_mtime_ns}")
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def _beside(folder: Path, name: Any) -> Path:
    """The folder called `name` beside `folder`; ModelError for a name that leads elsewhere, or where there is none."""
    if not isinstance(name, str) or not _FOLDER.fullmatch(name):
        raise ModelError(f"{folder / INDEX}: {BORROWS}={name!r} is not the plain name of a folder beside this one")
    found = folder.parent / name
    if not (found / INDEX).is_file():
        raise ModelError(f"{folder / INDEX} borrows components of {found}, which is no checkpoint; put it there")
    return found


def _architectures(path: Path) -> list[str]:
    """The one class that a config.json of transformers names; none where it names none, or several."""
    named = read_json(path).get("architectures")
    return named if isinstance(named, list) and len(named) == 1 and isinstance(named[0], str) else []


def plain_class(name: str) -> str:
    """`name` without the aliases of older library versions: `XTokenizerFast` is `XTokenizer` today."""
    if name in ("PreTrainedTokenizer", "PreTrainedTokenizerFast"):
        return "TokenizersBackend"
    return name.removesuffix("Fast")


def _not_a_checkpoint(folder: Path) -> str:
    needs = f"omnimuse needs a folder in the diffusers layout, with {INDEX} and one folder per component"
    if folder.is_file():
        return f"{folder} is a single file; {needs}{_advice([folder.name])}"
    if not folder.is_dir():
        return f"{folder} does not exist; {needs}"
    if (folder.parent / INDEX).is_file():
        return f"{folder} is one component of the checkpoint {folder.parent}; use {folder.parent}"
    names = sorted(path.name for path in folder.iterdir())
    single = [name for name in names if name.endswith((*SINGLE, *PICKLES))]
    if (folder / "config.json").is_file():
        found, advice = "config.json but no " + INDEX + ", so it looks like one network alone", ""
    elif single:
        found, advice = f"single-file weights ({few(single)})", _advice(single)
    else:
        found, advice = (few(names) if names else "nothing at all"), ""
    return f"{folder} has no {INDEX}: it holds {found}; {needs}{advice}"


def _advice(single: list[str]) -> str:
    """What to do with single files of these names, where there is something."""
    if any(name.endswith(SINGLE) for name in single):
        return f". {_CONVERT}"
    pickles = any(name.endswith(PICKLES) for name in single)
    return "; opening a pickle can run any code, so none is opened" if pickles else ""


_CONVERT = "Convert it once: omnimuse convert FILE --like MODEL -o FOLDER, with a checkpoint of the same kind as MODEL"


def _as_of_floats(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration without what a library says of how it packed the weights, where these are read: the loader asks
    the files.
    """
    said = config.get(SAID)
    try:
        read = isinstance(said, Mapping) and (said.get("quant_method") in PACKERS or eight_bits(said) is not None)
    except ModelError:  # `find` refuses it
        return config
    return {name: value for name, value in config.items() if name != SAID} if read else config
