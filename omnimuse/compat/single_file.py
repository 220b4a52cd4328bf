"""A checkpoint in one file, as other programs share them, becomes a folder in the diffusers layout.

The file holds weights and nothing else, so a checkpoint of the same kind gives the rest: configurations, tokenizers,
the scheduler, and networks that the file lacks. Names are translated by diffusers' own converters; what they give must
be all of a network, in its shapes. Called by `omnimuse convert`, and by `opening.py` for a file that is a model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from omnimuse.compat.diffusers.read import named_class
from omnimuse.compat.reader_file import LAYER, is_of_llama_cpp, plain_reader, readers_in
from omnimuse.compat.weights_file import Content, Tensors, read_file, shapes_in
from omnimuse.core.errors import ModelError, RequestError
from omnimuse.core.spec import Component
from omnimuse.loader.adapter_names import named
from omnimuse.loader.checkpoint import BORROWS, INDEX, Checkpoint
from omnimuse.loader.components import quiet
from omnimuse.loader.eight_bits import BESIDE, CONFIG, SAID
from omnimuse.loader.files import PICKLES, few, read_json
from omnimuse.loader.fits import NAME as MEASURED
from omnimuse.loader.identity import write_name
from omnimuse.loader.packed import new_folder, save_in_shards
from omnimuse.loader.resolve import Folder, resolve
from omnimuse.loader.tensors import construct
from omnimuse.loader.weights import refuse_no_numbers
from omnimuse.media.destination import check_new_folder
from omnimuse.quant.packings import Rows

DENOISER = "model.diffusion_model."
DECODER = ("first_stage_model.", "vae.")
READERS = ("cond_stage_model.", "conditioner.", "text_encoders.")
"""How names begin in files that hold more than one network."""
SHARDS = "*.safetensors.index*.json"
"""Which of several files has which tensor."""
PARTS = ("controlnet", "animatediff", "autoencoder")
"""How the library's names begin for kinds that draw nothing alone."""
FOLDERS = "what writes or speaks is read from folders in transformers' layout, which may be packed; use such a folder"
LAYOUTS = (
    "its networks are of no class of diffusers or transformers, by whose names files are read; use a folder in its "
    "authors' layout"
)
"""Why some models are in no single file that is read, and what to do."""

READER = (
    "has the names of llama.cpp, and such files are text encoders here: say which one of which model it is, as "
    "`-m MODEL --component text_encoder=FILE`. What writes or speaks is read from folders: "
    "`omnimuse chat FOLDER --quantize int4`"
)
"""What is said of such a file where it is named as a model."""

OTHERS = "another file, or the model that it belongs to"
"""What can be done about a file that does not fit, whoever asked."""

FILE_AGAIN = "get the file again, or use another one"
"""The same about one that fits and is damaged."""

Contents = dict[str, Tensor | Rows]


@dataclass(frozen=True)
class Converted:
    """Which components came from the file, and what is to be said of it: what of it was left out, and what it lacks."""

    folder: Path
    from_file: tuple[str, ...]
    notes: tuple[str, ...] = ()


def convert(
    file: Path,
    like: Checkpoint,
    target: Path,
    component: str | None = None,
    *,
    linked: bool = False,
    ours: Mapping[str, Component] = MappingProxyType({}),
    published: str = "",
) -> Converted:
    """Write the checkpoint in `file` to the new folder `target`; all else is that of `like`, copied or only `linked`.

    Only `component` is looked for in the file, if one is named. Packed weights of networks that are `ours` stay packed,
    others become bfloat16. `published` is the id by which the folder is known. ModelError says what the file lacks or
    has too much; nothing is left behind then. RequestError if `target` exists, or if the file fits several components.
    """
    check_new_folder(target)
    networks = [name for name in like.components if like.has_weights(name)]
    if component is not None and component not in networks:
        raise RequestError(f"{like.folder} has no network {component!r}; use one of {', '.join(networks)}", "component")
    if like.flat:
        raise ModelError(f"{file} cannot become a {like.arch}: {FOLDERS if like.files is None else LAYOUTS}")
    content = read_file(file)
    found, notes = _find_networks(file, content, like, networks, ours, component)
    for weights in found.values():
        _refuse_no_numbers(file, content, weights)
    with new_folder(target) as part:
        _write(part, like, found, linked)
        write_name(part / INDEX, published)
    return Converted(target, tuple(found), notes)


def kind_of(file: Path) -> str:
    """The id of a published checkpoint of the kind that `file` is of, as the library tells by names and shapes.

    ModelError where it cannot, or where that is no whole model.
    """
    from diffusers.loaders import single_file_utils as known

    shapes = shapes_in(file)
    try:
        kind = known.infer_diffusers_model_type(shapes)
    except (KeyError, UnboundLocalError, ValueError, NotImplementedError):
        kind = ""
    place = known.DIFFUSERS_DEFAULT_PIPELINE_PATHS.get(kind, {})
    # It says "v1" of all that it does not know.
    guessed = kind == "v1" and known.CHECKPOINT_KEY_NAMES["v1"] not in shapes
    if not place or guessed or "subfolder" in place or kind.startswith(PARTS):
        if any(map(LAYER.match, shapes)):
            raise ModelError(f"{file} {READER}")
        if any(part.role in ("down", "up") for part in map(named, shapes) if part is not None):
            raise ModelError(f"{file} is an adapter and no model; name a model, and wear this with --lora {file}")
        raise ModelError(
            f"names such as {few(sorted(shapes)[:3])} do not tell of which model this is the network; say it with "
            f"`omnimuse convert {file.name} --like MODEL -o FOLDER`, and use the folder"
        )
    return str(place["pretrained_model_name_or_path"])


def like_of(file: Path) -> Folder:
    """The published checkpoint of the kind that `file` is of; ModelError that says what else can be done where it is
    neither here nor comes from the hub.
    """
    model = kind_of(file)
    try:
        return resolve(model)
    except ModelError as problem:
        raise ModelError(
            f"{file} is by its names like {model}, which would give the rest: {problem}. If it is of another model, "
            f"say of which with `omnimuse convert {file.name} --like MODEL -o FOLDER`, and use the folder"
        ) from problem.__cause__


def _find_networks(
    file: Path,
    content: Content,
    like: Checkpoint,
    networks: Sequence[str],
    ours: Mapping[str, Component],
    component: str | None,
) -> tuple[dict[str, Contents], tuple[str, ...]]:
    """The weights of every one of the `networks` of `like`, or of that `component`, that the file holds, as the library
    names them, and what is to be said of them.
    """
    names = networks if component is None else [component]
    found, why, tensors = dict[str, Contents](), list[str](), content.tensors
    if is_of_llama_cpp(content):
        readers = readers_in(file, content, like, names, ours)
        notes = [f"{name}: {note}" for name, each in readers.items() for note in each.notes]
        return {name: each.weights for name, each in readers.items()}, tuple(notes)
    if component is not None and like.components[component][0] == "transformers" and not _is_compound(tensors):
        reader = plain_reader(file, content, like, component, ours.get(component))
        if isinstance(reader, str):
            raise ModelError(f"{file} is not the {component} of {like.folder}: {reader}; use {OTHERS}")
        return {component: reader.weights}, tuple(f"{component}: {note}" for note in reader.notes)
    for name in names:
        part = _part(name, tensors)
        if not part:
            continue
        cls = named_class(like, name)
        weights = _translated(cls, name, like, part, content, packed=name in ours and bool(ours[name].network))
        if weights is None:
            continue
        wrong = _differences(cls, name, like, weights)
        if wrong is None:
            found[name] = weights
        elif _is_compound(tensors):
            raise ModelError(f"{file} holds a {name} that is not that of {like.folder}: {wrong}; use {OTHERS}")
        else:
            why.append(f"{name}: {wrong}")
    if not found:
        begin = f"its names begin with {few(sorted(tensors)[:4])}"
        raise ModelError(
            f"{file} holds no network of {like.folder} ({like.arch}); {'; '.join(why) or begin}. Use {OTHERS}"
        )
    twins = [name for name in found if not name.startswith(("vae", "text_encoder"))]
    if len(twins) > 1:
        raise RequestError(f"{file} fits {' and '.join(sorted(twins))}; say which it is with --component", "component")
    return found, ()


def _refuse_no_numbers(file: Path, content: Content, weights: Contents) -> None:
    """ModelError where one of the `weights` that were made of the file is NaN or infinite, with the file's own name for
    it. What else is in a file may be anything.
    """
    try:
        for name, each in weights.items():
            refuse_no_numbers(file, name, each, again=FILE_AGAIN)
    except ModelError:
        for name in content.tensors:
            refuse_no_numbers(file, name, content.one(name), again=FILE_AGAIN)
        raise


def _is_compound(tensors: Tensors) -> bool:
    """Whether names say which network they belong to; otherwise the file holds a single one."""
    return any(name.startswith((DENOISER, *DECODER, *READERS)) for name in tensors)


def _part(name: str, tensors: Tensors) -> Tensors:
    """The tensors that may be those of component `name`."""
    if not _is_compound(tensors):
        return {} if name.startswith("text_encoder") else dict(tensors)
    starts: tuple[str, ...] = (DENOISER,)
    if name.startswith("vae"):
        starts = DECODER
    elif name.startswith("text_encoder"):
        starts = READERS
    return {key: tensor for key, tensor in tensors.items() if key.startswith(starts)}


def _translated(
    cls: Any, name: str, like: Checkpoint, part: Tensors, content: Content, *, packed: bool
) -> Contents | None:
    """`part` in the library's names: as it is, if it has them, or converted; None if nothing converts it for `cls`."""
    try:
        with quiet("diffusers"):
            network = _network(cls, like.config(name), part)
            if network is not None:
                return content.resolved(network) if packed else dict(content.floats(network))
            reader = _reader(cls, name, like, content.floats(part))
            return None if reader is None else dict(reader)
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, RuntimeError):
        return None  # the converters look for names without asking


def _network(cls: Any, config: Mapping[str, Any], part: Tensors) -> Tensors | None:
    """`part` as it is, where these are the library's own names already; else as its converter for `cls` has it, if it
    has one.
    """
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES as KNOWN

    bare = {key.removeprefix(DENOISER): tensor for key, tensor in part.items()}
    if hasattr(cls, "from_config") and _shapes(cls, config).keys() <= bare.keys():
        return bare
    if cls.__name__ not in KNOWN:
        return None
    if cls.__name__.startswith("UNet"):  # this converter wants the prefix, the others do without
        bare = {DENOISER + key: tensor for key, tensor in bare.items()}
    converted: Tensors = KNOWN[cls.__name__]["checkpoint_mapping_fn"](checkpoint=bare, config=dict(config))
    return converted


def _reader(cls: Any, name: str, like: Checkpoint, part: Tensors) -> Tensors | None:
    """A text encoder of the kinds that such files hold."""
    from diffusers.loaders import single_file_utils as known

    place = {"subfolder": name, "config": str(like.folder), "local_files_only": True}
    if known.is_clip_model_in_single_file(cls, part):
        model = known.create_diffusers_clip_model_from_ldm(cls, checkpoint=dict(part), **place)
    elif known.is_t5_in_single_file(part):
        model = known.create_diffusers_t5_model_from_checkpoint(cls, checkpoint=dict(part), **place)
    else:
        return None
    weights: Tensors = model.state_dict()
    return weights if not any(tensor.is_meta for tensor in weights.values()) else None


def _differences(cls: Any, name: str, like: Checkpoint, weights: Contents) -> str | None:
    """What is wrong with `weights` for component `name`, in words; None if they are all of it, in its shapes."""
    if not hasattr(cls, "from_config"):
        return None  # the library built it from these weights
    wanted = _shapes(cls, like.config(name))
    missing = sorted(wanted.keys() - weights.keys())
    shapes = [key for key in sorted(wanted.keys() & weights.keys()) if tuple(weights[key].shape) != wanted[key]]
    if missing:
        return f"it lacks {len(missing)} of {len(wanted)} tensors ({few(missing, 3)})"
    if shapes:
        return f"{shapes[0]} has shape {list(weights[shapes[0]].shape)} and not {list(wanted[shapes[0]])}"
    rooms = {key.partition(".")[0] for key in wanted}
    for key in sorted(weights.keys() - wanted.keys()):
        if key.partition(".")[0] in rooms:
            return f"it has {key} besides, so it is a larger network"
        del weights[key]  # counters, copies for training
    return None


def _shapes(cls: Any, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Of every tensor of a network of the library's, by its name."""
    module: nn.Module = construct(lambda: cls.from_config(dict(config)))
    return {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}


def _write(part: Path, like: Checkpoint, found: Mapping[str, Contents], linked: bool) -> None:
    part.mkdir(parents=True)
    for about in like.folder.glob("*.json"):  # the index, and what else is said of the whole
        if about.name != MEASURED and not about.match(SHARDS):  # of other weights
            shutil.copy(about, part)
    if like.lender is not None:  # whose components are here, too
        index = {name: value for name, value in read_json(part / INDEX).items() if name != BORROWS}
        (part / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    for name in like.components:
        source, place = like.path(name), part / name
        if name not in found:
            if linked:
                place.symlink_to(source.resolve(), target_is_directory=True)
            else:
                shutil.copytree(source, place)
            continue
        skip = shutil.ignore_patterns("*.safetensors", SHARDS, BESIDE, *(f"*{end}" for end in PICKLES))
        shutil.copytree(source, place, ignore=skip)
        _forget_packing(place / CONFIG)
        stem = "diffusion_pytorch_model" if like.components[name][0] == "diffusers" else "model"
        save_in_shards(found[name].items(), place, stem)  # no second copy of all in memory


def _forget_packing(path: Path) -> None:
    """Take out of a configuration how the weights were packed that were there before."""
    config = read_json(path) if path.is_file() else {}
    if config.pop(SAID, None) is not None:
        path.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
