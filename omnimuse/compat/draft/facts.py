"""What is known of a model that no family draws yet: read from its checkpoint, or from a class of diffusers."""

from __future__ import annotations

import re
from ast import unparse
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from omnimuse.compat.diffusers.source import PipelineSource, read_source
from omnimuse.core.errors import ModelError
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.loader.components import quiet
from omnimuse.loader.files import read_json
from omnimuse.loader.headers import stored_in

NETWORKS = ("transformer", "unet", "dit", "denoiser")
"""What the component is called that draws, in the order in which it is looked for."""
NEEDED = (*NETWORKS, "vae", "text_encoder", "tokenizer")
"""What no model draws without, although a class may say so: its own pipelines are put together in parts."""
ANY_SCHEDULER = "DPMSolverMultistepScheduler"
"""What stands for a scheduler of which a class does not say of what kind it is."""


@dataclass(frozen=True)
class ModelFacts:
    """A model as others have it: its pipeline class, the library and class of every component, and of its network the
    name, the configuration and the shape of every tensor. `without` are components that the class can do without, and
    begins without.
    """

    source: PipelineSource
    components: Mapping[str, tuple[str, str]]
    network: str
    config: Mapping[str, Any]
    weights: Mapping[str, tuple[int, ...]]
    without: tuple[str, ...] = ()

    @property
    def arch(self) -> str:
        """The class that a checkpoint's model_index.json names."""
        return self.source.arch

    @property
    def network_class(self) -> str:
        """The library's class of the network."""
        return self.components[self.network][1]


def read_facts_of(source: str) -> ModelFacts:
    """The facts of a folder with a model_index.json, or of a pipeline class of diffusers, by its name."""
    return _of_folder(Path(source)) if Path(source).is_dir() else _of_class(source)


def _of_folder(folder: Path) -> ModelFacts:
    checkpoint = Checkpoint(folder)
    network = _network(checkpoint.components, checkpoint.arch)
    path = checkpoint.path(network)
    config = {key: value for key, value in read_json(path / "config.json").items() if not key.startswith("_")}
    weights = {name: tuple(each.shape) for name, each in stored_in(path).items()}
    return ModelFacts(read_source(checkpoint.arch), checkpoint.components, network, config, weights)


def _of_class(arch: str) -> ModelFacts:
    source = read_source(arch)
    components, without, arguments = {}, [], source.bodies["__init__"].args
    least = len(arguments.args) - len(arguments.defaults)
    for place, argument in enumerate(arguments.args[1:], 1):
        names = re.findall(r"\b[A-Z]\w+", "" if argument.annotation is None else unparse(argument.annotation))
        found = [(library, name) for name in names for library in ("diffusers", "transformers") if _has(library, name)]
        name, optional = argument.arg, source.attributes.get("_optional_components", ())
        if place >= least and name in optional and name.removesuffix("_2") not in NEEDED:
            without.append(name)
        elif found:
            components[name] = found[0]
        elif name == "scheduler":
            components[name] = ("diffusers", ANY_SCHEDULER)
    network, components = _network(components, arch), _in_checkpoints(components)
    library, name = components[network]
    cls = getattr(import_module(library), name)
    parameters = signature(cls.__init__).parameters.values()
    config = {each.name: each.default for each in parameters if each.default is not each.empty}
    with torch.device("meta"), quiet("diffusers"):
        try:
            weights = {key: tuple(tensor.shape) for key, tensor in cls().state_dict().items()}
        except (TypeError, ValueError) as problem:
            why = f"{name} has no defaults that make a network of it ({problem})"
            raise ModelError(f"{why}; give the folder of a checkpoint of {arch}") from problem
    return ModelFacts(source, components, network, config, weights, tuple(without))


def _in_checkpoints(components: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """The classes that checkpoints name, where a pipeline names one that stands for several."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    found = dict(components)
    for component, (library, name) in components.items():
        if name.endswith("PreTrainedModel"):
            found[component] = (library, MODEL_MAPPING_NAMES.get(_kind(name), name))
        elif name == "AutoTokenizer":
            _, encoder = components.get(component.replace("tokenizer", "text_encoder"), (library, ""))
            found[component] = (library, TOKENIZER_MAPPING_NAMES.get(_kind(encoder)) or "TokenizersBackend")
    return found


def _kind(name: str) -> str:
    """What transformers calls the kind of model that a class is of; empty for no such class."""
    config = config_class(name)
    return "" if config is None else str(config.model_type)


def config_class(name: str) -> Any:
    """The class of the configuration of a class of transformers; None for one that has none."""
    transformers = import_module("transformers")
    cls: Any = getattr(transformers, name) if hasattr(transformers, name) else None
    return cls.config_class if hasattr(cls, "config_class") else None


def _has(library: str, name: str) -> bool:
    with quiet(library):
        return isinstance(getattr(import_module(library), name, None), type)


def _network(components: Mapping[str, Any], arch: str) -> str:
    for name in NETWORKS:
        if name in components:
            return name
    raise ModelError(
        f"{arch} has no component called {', '.join(NETWORKS)}; what draws in it? It has {list(components)}"
    )
