"""A tokenizer that needs no transformers: `tokenizer.json` as it stands, and a chat template.

`components` takes it where `suffices` says that it does what transformers' class would do; importing that class takes
as long as drawing a small picture. It is called as tokenizers of transformers are, as far as `pipeline/text.py` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jinja2 import Template, TemplateSyntaxError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from torch import Tensor

from omnimuse.core.errors import ModelError
from omnimuse.loader.files import read_json

KINDS = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""The classes of transformers that take tokenizer.json as it stands; the others rebuild parts of it."""

CONTENT, CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LISTED = ("additional_special_tokens", "extra_special_tokens")

FIXED: Mapping[str, Sequence[object]] = {
    "padding_side": ("right",),
    "truncation_side": ("right",),
    "tokenizer_class": KINDS,
    "backend": ("tokenizers",),
}
"""Settings that may have these values only; the settings in `IDLE` change nothing here."""

IDLE = ("clean_up_tokenization_spaces", "is_local", "local_files_only", "model_max_length")

VARIABLES = {*NAMED, "messages", "tools", "documents", "add_generation_prompt", "enable_thinking"}
"""What a chat template may use; beyond that, transformers offers functions and a filter of its own."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of one text: ids and which of them are no pads, both int64 [1, S]."""

    input_ids: Tensor
    attention_mask: Tensor

    def to(self, device: torch.device | str) -> Tokens:
        """The same on `device`."""
        return Tokens(self.input_ids.to(device), self.attention_mask.to(device))


class PlainTokenizer:
    """The tokenizer in `folder`, for which `suffices` must hold."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._backend = Tokenizer.from_file(str(folder / CONTENT))
        self._named = {name: token for name, token in _settings(folder).items() if name in NAMED and token}
        self._pad = self._backend.token_to_id(self._named.get("pad_token", ""))
        self._template = _template(folder)

    def __call__(
        self,
        text: str,
        *,
        padding: Literal[False, "max_length"] = False,
        truncation: bool = False,
        max_length: int = 0,
        return_tensors: Literal["pt"] = "pt",
        verbose: bool = False,
    ) -> Tokens:
        """The tokens of `text`: with `truncation` the first `max_length`, with `padding` at least as many."""
        ids = self._backend.encode(text).ids
        ids = ids[:max_length] if truncation else ids
        pads = self._pads(max_length - len(ids)) if padding and len(ids) < max_length else []
        mask = [1] * len(ids) + [0] * len(pads)
        return Tokens(torch.tensor([ids + pads], dtype=torch.int64), torch.tensor([mask], dtype=torch.int64))

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        tokenize: Literal[False] = False,
        add_generation_prompt: bool = False,
        enable_thinking: bool | None = None,
    ) -> str:
        """The text of a chat; ModelError if the checkpoint has no template for it."""
        if self._template is None:
            raise ModelError(f"{self._folder} has no {TEMPLATE} and no chat_template in {CONFIG}; this model needs one")
        chosen = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        return self._template.render(
            messages=[dict(message) for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self._named,
            **chosen,
        )

    def _pads(self, count: int) -> list[int]:
        if self._pad is None:
            raise ModelError(f"{self._folder / CONFIG} names no pad_token; this model needs one")
        return [self._pad] * count


def suffices(folder: Path, kind: str) -> bool:
    """Whether `PlainTokenizer` does what transformers' class `kind` would do with the files in `folder`.

    It looks for reasons against it: files, settings or template functions beyond the known ones, tokens added around
    every text, special tokens that tokenizer.json does not have. ModelError if a file is damaged.
    """
    names = {path.name for path in folder.iterdir()}
    if kind not in KINDS or CONTENT not in names or not names <= {CONTENT, CONFIG, TEMPLATE}:
        return False
    content, settings = read_json(folder / CONTENT), _settings(folder)
    if content.get("truncation") or content.get("padding") or not _is_known(settings):
        return False
    if not _special_tokens(settings) <= _plain_special_tokens(content):
        return False
    return _adds_nothing(content.get("post_processor")) and _is_renderable(folder)


def _settings(folder: Path) -> dict[str, Any]:
    """What tokenizer_config.json says; nothing, if there is none."""
    return dict(read_json(folder / CONFIG)) if (folder / CONFIG).is_file() else {}


def _is_known(settings: Mapping[str, Any]) -> bool:
    for key, value in settings.items():
        if key in NAMED or key == "chat_template":
            known = value is None or isinstance(value, str)
        elif key in LISTED:
            known = isinstance(value, list) and all(isinstance(token, str) for token in value)
        else:
            known = key in IDLE or value in FIXED.get(key, ())
        if not known:
            return False
    return True


def _special_tokens(settings: Mapping[str, Any]) -> set[str]:
    named = {settings[key] for key in NAMED if settings.get(key)}
    return named.union(*(settings.get(key, ()) for key in LISTED))


def _plain_special_tokens(content: Mapping[str, Any]) -> set[str]:
    """Those that stand for themselves wherever they appear, as transformers adds the ones it is told of."""
    bent = ("single_word", "lstrip", "rstrip", "normalized")
    tokens = content.get("added_tokens", [])
    return {token["content"] for token in tokens if token["special"] and not any(token[key] for key in bent)}


def _adds_nothing(post_processor: Mapping[str, Any] | None) -> bool:
    """Whether no token comes before or after a text."""
    match post_processor:
        case None | {"type": "ByteLevel"}:
            return True
        case {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}]}:
            return True
    return False


def _is_renderable(folder: Path) -> bool:
    source = _source(folder)
    try:
        tree = _environment().parse(source or "")
    except TemplateSyntaxError:
        return False
    own = {found.name for found in tree.find_all(nodes.Filter)} & {"tojson"}
    return not own and meta.find_undeclared_variables(tree) <= VARIABLES


def _template(folder: Path) -> Template | None:
    source = _source(folder)
    return None if source is None else _environment().from_string(source)


def _source(folder: Path) -> str | None:
    if (folder / TEMPLATE).is_file():
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    return _settings(folder).get("chat_template")


def _environment() -> ImmutableSandboxedEnvironment:
    """As transformers renders templates, which anyone may have written, but without functions."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals.clear()
    return environment
