"""Text encoders in one file, as people have them beside a transformer's: in GGUF in the names of llama.cpp, or in those
of transformers, which they are given here.

Which name of llama.cpp is whose, gguf's own tables say; what that program turns around, adds or cuts off is undone. The
model's own folder has the configuration and the tokenizer, and what such files never hold: towers that look. Called by
`single_file`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from omnimuse.compat.weights_file import Content
from omnimuse.core.errors import ModelError, RequestError
from omnimuse.core.spec import Component
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.loader.components import construct_library_network, library_rules
from omnimuse.loader.files import few
from omnimuse.loader.headers import opened, stored_in
from omnimuse.loader.named import rules_of
from omnimuse.loader.rules import apply_rules
from omnimuse.loader.sources import Source
from omnimuse.quant.packings import Rows

ARCHITECTURE = "general.architecture"
TOWER = "clip"
"""What files are called that hold a tower that looks, and nothing that reads."""
WORDS = "token_embd.weight"
LAYER = re.compile(r"(enc\.|dec\.)?blk\.\d+\.")
"""How names of layers begin."""
TURNED = re.compile(r".*\.attn_[qk]\.(weight|bias)")
LEFT = re.compile(r"dec\..*|output\.weight|rope_freqs\.weight")
"""What no reader of texts needs: what writes, and turns that follow from the configuration."""
TOKENIZERS = ("spiece_model", "tekken_model")
"""What files of other programs have of them among the weights."""
TEXTS = "language_model."
"""What stands before the names of a language model that has towers beside it."""
COUNTS = {"attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads"}
"""What no shape tells, as files and as transformers call it."""


@dataclass(frozen=True)
class Kind:
    """Files of one architecture: what transformers calls such models (`model_type`), whether rows of queries and keys
    are `turned`, what is `added` to weights of norms, and whether embeddings of words are `cut` that no tokenizer has.
    """

    models: tuple[str, ...]
    turned: bool = False
    added: float = 0.0
    cut: bool = False


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "t5": Kind(("t5", "umt5")),
        "t5encoder": Kind(("t5", "umt5")),
        "qwen2vl": Kind(("qwen2_vl_text", "qwen2_5_vl_text")),
        "qwen3": Kind(("qwen3",)),
        "llama": Kind(("llama", "mistral"), turned=True),
        "mistral3": Kind(("mistral",), turned=True),
        "gemma2": Kind(("gemma2",), added=1.0),
        "gemma3": Kind(("gemma3_text",), added=1.0, cut=True),
    }
)
"""Those that are read, by what files call them."""


@dataclass(frozen=True)
class Reader:
    """The weights of a text encoder by transformers' names, and what is to be said of them."""

    weights: dict[str, Tensor | Rows]
    notes: list[str] = field(default_factory=list)


def is_of_llama_cpp(content: Content) -> bool:
    """Whether the names in a file are those of llama.cpp."""
    return content.facts.get(ARCHITECTURE) == TOWER or any(map(LAYER.match, content.tensors))


def readers_in(
    file: Path, content: Content, like: Checkpoint, names: Sequence[str], ours: Mapping[str, Component]
) -> dict[str, Reader]:
    """The one of the components `names` of `like` whose text encoder is in `file`; ModelError where none is, and
    RequestError where it could be that of several, or is that of another component.

    Packed weights of components of `ours` stay packed, others become bfloat16.
    """
    kind = _kind(file, content)
    found = {name: _matched(content, kind, like, name, ours.get(name)) for name in names}
    fits = [each for each in found.values() if isinstance(each, _Matched)]
    if len(fits) > 1:
        which = " and ".join(each.name for each in fits)
        raise RequestError(f"{file} fits {which}; say which it is with --component", "component")
    if fits:
        return {fits[0].name: fits[0].reader(file, ours.get(fits[0].name))}
    others = [name for name in like.components if like.has_weights(name) and name not in names]
    for name in others:
        found[name] = _matched(content, kind, like, name, ours.get(name))
        if isinstance(found[name], _Matched):
            raise RequestError(
                f"{file} is not the {' or '.join(names)} of {like.folder} ({like.arch}), but the {name}: name that "
                "component",
                "component",
            )
    why = [each for each in found.values() if isinstance(each, str) and each] or ["it has none that reads texts"]
    raise ModelError(
        f"{file} holds no text encoder of {like.folder} ({like.arch}); {'; '.join(why)}. The file is that of "
        f"a {content.facts[ARCHITECTURE]} (general.architecture): use the one that was made from this model's own text "
        "encoder"
    )


def plain_reader(
    file: Path, content: Content, like: Checkpoint, name: str, component: Component | None
) -> Reader | str:
    """The text encoder `name` of `like` in a file in transformers' own names, new or old; or why it is another one."""
    module: Any = construct_library_network(like, name)
    rules, wanted = library_rules(like, name, module), module.state_dict()
    called = {apply_rules(each, rules).name: each for each in content.tensors}
    known = {
        key: next((called[each] for each in (key, f"model.{short}") if each in called), key)
        for key, short in _texts(wanted)
    }
    known |= {key: called[key] for key in wanted if key in called}
    unread = {each for each in content.tensors if each in TOKENIZERS or not apply_rules(each, rules).name}
    matched = _Matched(content, Kind(()), like, name, module, known, unread.__contains__)
    return matched.wrong(component) or matched.reader(file, component)


def _kind(file: Path, content: Content) -> Kind:
    architecture = str(content.facts.get(ARCHITECTURE, "nothing"))
    if architecture == TOWER:
        raise ModelError(
            f"{file} holds what looks at pictures (mmproj) and no text encoder; give the file of the language model "
            "beside it: what looks stays that of the model"
        )
    if architecture not in KINDS:
        raise ModelError(
            f"{file} has the names of llama.cpp and says that it is a model of the architecture {architecture!r}; read "
            f"are text encoders of {', '.join(KINDS)}. Use the folder of the encoder, which --quantize "
            "text_encoder=int4 packs"
        )
    return KINDS[architecture]


@dataclass
class _Matched:
    """What of a file goes where in a network of transformers', `module`, whose tensors it calls as is `known`, and what
    of it has no place: names that may be `left` out need none.
    """

    content: Content
    kind: Kind
    like: Checkpoint
    name: str
    module: Any
    known: Mapping[str, str]
    left: Callable[[str], object]

    def __post_init__(self) -> None:
        self.text, known = self.module.config.get_text_config(), self.known
        self.wanted = {key: tuple(each.shape) for key, each in self.module.state_dict().items()}
        tensors, ties = self.content.tensors, _ties(self.module)
        self.places, filled = dict[str, str](), set[str]()
        for key, called in known.items():
            if called in tensors and ties.get(key, key) not in filled:
                self.places[key] = called
                filled.add(ties.get(key, key))
        self.missing = {key: known.get(key) for key in self.wanted if ties.get(key, key) not in filled}
        self.unused = [each for each in tensors if each not in self.places.values()]

    def wrong(self, component: Component | None) -> str:
        """Why this is not the file of that network; empty where it is."""
        if differs := _differs(self.content, self.text):
            return differs
        if larger := [each for each in self.unused if not self.left(each)]:
            return f"it has {few(larger, 3)} besides, so it is a larger network"
        needed = self._needed(component)
        if lacking := [called for key, called in self.missing.items() if called and needed(key)]:
            return f"it lacks {len(lacking)} of {len(self.wanted)} tensors ({few(lacking, 3)})"
        for key, called in self.places.items():
            shape, wanted = self.content.shape(called), self.wanted[key]
            if shape != wanted and not (self._is_cut(called) and shape[1:] == wanted[1:] and shape[0] < wanted[0]):
                return f"{called} has shape {list(shape)} and not {list(wanted)}"
        return ""

    def reader(self, file: Path, component: Component | None) -> Reader:
        """All of the network; ModelError where its folder has not what the file lacks."""
        turned = {key: self._turned_back(called) for key, called in self.places.items()}
        weights = dict(self.content.resolved(turned))
        found = Reader(weights)
        for key, called in self.places.items():
            if (short := self.wanted[key][0] - weights[key].shape[0]) > 0:
                weights[key] = _longer(weights[key], short)
                found.notes.append(f"{called} has no rows for the last {short} of {self.wanted[key][0]} words: zeros")
        if self.unused:
            found.notes.append(f"{few(sorted(self.unused), 3)} of {file.name} left out: nothing that reads needs it")
        needed = self._needed(component)
        if lacking := [key for key in self.missing if needed(key)]:
            weights |= _from_folder(file, self.like, self.name, self.module, lacking)
            found.notes.append(f"{few(_rooms(lacking))} ({len(lacking)} tensors) from {self.like.folder}")
        if component is None:
            weights |= {key: each.floats().bfloat16() for key, each in weights.items() if isinstance(each, Rows)}
        return found

    def _needed(self, component: Component | None) -> Callable[[str], bool]:
        """Whether a tensor, by transformers' name, is read at all."""
        if component is None:
            return lambda key: True
        rules = rules_of(component, self.like, self.name, self.module)
        return lambda key: bool(apply_rules(key, rules).name)

    def _is_cut(self, called: str) -> bool:
        return self.kind.cut and called == WORDS

    def _turned_back(self, called: str) -> Tensor:
        tensor = self.content.tensors[called]
        if self.kind.turned and TURNED.fullmatch(called):
            heads = self.text.num_key_value_heads if ".attn_k." in called else self.text.num_attention_heads
            return tensor.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
        if self.kind.added and called.endswith("norm.weight"):
            return tensor.float() - self.kind.added
        return tensor


def _matched(content: Content, kind: Kind, like: Checkpoint, name: str, component: Component | None) -> _Matched | str:
    """The text encoder `name` of `like` in a file in the names of llama.cpp; or why it is another one, which is empty
    where that component reads no texts.
    """
    if like.components[name][0] != "transformers":
        return ""
    module: Any = construct_library_network(like, name)
    text = module.config.get_text_config()
    if text.model_type not in kind.models:
        return f"{name} is a {text.model_type}"
    known = _names(module.state_dict(), str(content.facts[ARCHITECTURE]), text.num_hidden_layers)
    matched = _Matched(content, kind, like, name, module, known, LEFT.fullmatch)
    wrong = matched.wrong(component)
    return f"{name}: {wrong}" if wrong else matched


def _names(wanted: Mapping[str, Any], architecture: str, layers: int) -> dict[str, str]:
    """What files of `architecture` call the tensors `wanted`, of those that they hold."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    numbers = {each: number for number, each in MODEL_ARCH_NAMES.items()}
    if architecture not in numbers:
        raise ModelError(f"the installed gguf does not know the architecture {architecture!r}: pip install -U gguf")
    table, found = get_tensor_name_map(numbers[architecture], layers), dict[str, str]()
    for key, short in _texts(wanted):
        base, _, suffix = short.rpartition(".")
        called = table.get_name(base) or table.get_name(f"model.{base}")
        if called is not None:
            found[key] = f"{called}.{suffix}"
    return found


def _texts(wanted: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Of the tensors `wanted`, those that read and write texts, and their names where nothing looks."""
    within = any(TEXTS in key for key in wanted)
    for key in wanted:
        if not within or TEXTS in key or key.startswith("lm_head."):
            yield key, key.rpartition(TEXTS)[2].removeprefix("model.")


def _ties(module: Any) -> dict[str, str]:
    """The first name of each parameter, by all of its names."""
    first = dict[int, str]()
    return {name: first.setdefault(id(each), name) for name, each in module.named_parameters(remove_duplicate=False)}


def _differs(content: Content, text: Any) -> str:
    """What the file tells of its model that is not so of one with the configuration `text`, and no shape shows."""
    said = {name.partition(".")[2]: each for name, each in content.facts.items()}
    for name, ours in COUNTS.items():
        if said.get(name, getattr(text, ours, None)) != (expected := getattr(text, ours, said.get(name))):
            return f"its {name} is {said[name]} and not {expected}"
    expected = (text.to_dict().get("rope_parameters") or {}).get("rope_theta")
    if expected and abs(float(said.get("rope.freq_base", expected)) - expected) > 1e-6 * expected:
        return f"its rope.freq_base is {said['rope.freq_base']:g} and not {expected:g}"
    return ""


def _longer(content: Tensor | Rows, rows: int) -> Tensor | Rows:
    """With so many rows of zeros below; blocks of zeros stand for these in every format of GGUF."""
    if isinstance(content, Tensor):
        return torch.cat([content, content.new_zeros(rows, *content.shape[1:])])
    return replace(
        content, parts={name: torch.cat([p, p.new_zeros(rows, p.shape[1])]) for name, p in content.parts.items()}
    )


def _from_folder(
    file: Path, like: Checkpoint, name: str, module: Any, lacking: Sequence[str]
) -> Iterator[tuple[str, Tensor | Rows]]:
    """Tensors of the network `name` that no file of llama.cpp holds, as the folder of `like` has them."""
    rules = library_rules(like, name, module)
    try:
        stored = {
            apply_rules(source, rules).name: (source, each) for source, each in stored_in(like.weights(name)).items()
        }
    except ModelError as problem:
        raise ModelError(f"{_lacks(file, lacking)}, and the model's own folder gives none: {problem}") from problem
    if gone := [key for key in lacking if key not in stored]:
        raise ModelError(f"{_lacks(file, gone)}, and neither has {like.weights(name)}; use a complete model")
    for path, keys in groupby(
        sorted(lacking, key=lambda key: stored[key][1].path), key=lambda key: stored[key][1].path
    ):
        with opened(path) as handle:
            for key in keys:
                yield key, Source(handle, *stored[key]).whole()


def _lacks(file: Path, keys: Sequence[str]) -> str:
    return f"{file} lacks {len(keys)} tensors that are needed ({few(_rooms(keys))}), as all files of llama.cpp do"


def _rooms(keys: Sequence[str]) -> list[str]:
    """Where tensors of these names are: without what follows the second dot."""
    return list(dict.fromkeys(".".join(key.split(".")[:2]) for key in keys))
