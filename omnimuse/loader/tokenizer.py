"""A tokenizer that needs no transformers: `tokenizer.json` as it stands, and a chat template.

`components` takes it where `suffices` says that it does what transformers' class would do; importing that class takes
as long as drawing a small picture. It is called as tokenizers of transformers are, as far as `pipeline/text.py` does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jinja2 import TemplateSyntaxError, meta
from tokenizers import Tokenizer
from torch import Tensor

from omnimuse.core.errors import ModelError
from omnimuse.loader.chat import Chat
from omnimuse.loader.files import read_json
from omnimuse.loader.template import environment
from omnimuse.loader.template_file import CONFIG, TEMPLATE, settings_in, template_beside, template_in

KINDS = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""The classes of transformers that take tokenizer.json as it stands; the others rebuild parts of it."""

CONTENT = "tokenizer.json"

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
"""What a chat template is given; the functions that transformers offers are offered here, too (`template.py`)."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of one text: ids and which of them are no pads, both int64 [1, S]."""

    input_ids: Tensor
    attention_mask: Tensor

    def to(self, device: torch.device | str) -> Tokens:
        """The same on `device`."""
        return Tokens(self.input_ids.to(device), self.attention_mask.to(device))


class Chatting(ABC):
    """A tokenizer whose chat template is rendered by ours, within bounds: `_chat`, where `_folder` has one."""

    _folder: Path
    _chat: Chat | None

    @property
    @abstractmethod
    def named(self) -> Mapping[str, Any]:
        """The special tokens, by what a template calls them."""

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tokenize: Literal[False] = False,
        add_generation_prompt: bool = False,
        enable_thinking: bool | None = None,
    ) -> str:
        """The text of a chat, in which `tools` may be called; ModelError if the checkpoint has no template for it."""
        if self._chat is None:
            raise ModelError(f"{self._folder} has no {TEMPLATE} and no chat_template in {CONFIG}; this model needs one")
        chosen = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        return self._chat.render(
            {
                "messages": [dict(message) for message in messages],
                "tools": None if tools is None else [dict(tool) for tool in tools],
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
                **self.named,
                **chosen,
            }
        )


class PlainTokenizer(Chatting):
    """The tokenizer in `folder`, for which `suffices` must hold."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._backend = Tokenizer.from_file(str(folder / CONTENT))
        self._named = {name: token for name, token in settings_in(folder).items() if name in NAMED and token}
        self._pad = self._backend.token_to_id(self._named.get("pad_token", ""))
        source = template_in(folder)
        self._chat = None if source is None else Chat(source, str(folder))

    def __call__(
        self,
        text: str,
        *,
        padding: Literal[False, "max_length"] = False,
        truncation: bool = False,
        max_length: int = 0,
        return_tensors: Literal["pt"] = "pt",
        verbose: bool = False,
        add_special_tokens: bool = True,
    ) -> Tokens:
        """The tokens of `text`: with `truncation` the first `max_length`, with `padding` at least as many.

        There are none that could be added.
        """
        ids = self._backend.encode(text).ids
        ids = ids[:max_length] if truncation else ids
        pads = self._pads(max_length - len(ids)) if padding and len(ids) < max_length else []
        mask = [1] * len(ids) + [0] * len(pads)
        return Tokens(torch.tensor([ids + pads], dtype=torch.int64), torch.tensor([mask], dtype=torch.int64))

    def numbers(self, text: str, *, special: bool = True) -> list[int]:
        """The same tokens of `text` as plain numbers; there are no `special` ones that could be added."""
        return list(self._backend.encode(text).ids)

    @property
    def named(self) -> Mapping[str, Any]:
        return self._named

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return int(self._backend.get_vocab_size())

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without special tokens."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def _pads(self, count: int) -> list[int]:
        if self._pad is None:
            raise ModelError(f"{self._folder / CONFIG} names no pad_token; this model needs one")
        return [self._pad] * count


class LibraryTokenizer(Chatting):
    """A tokenizer of transformers, `inner`."""

    def __init__(self, inner: Any, folder: Path) -> None:
        self.inner, self._folder = inner, folder
        self.chat_template: str | None = inner.get_chat_template() if inner.chat_template else template_beside(folder)
        self._chat = None if self.chat_template is None else Chat(self.chat_template, str(folder))

    def __call__(
        self,
        text: str,
        *,
        padding: Literal[False, "max_length"] = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: Literal["pt"] = "pt",
        verbose: bool = False,
        add_special_tokens: bool = True,
    ) -> Any:
        """The tokens of `text`, as transformers makes them."""
        how = {"padding": padding, "truncation": truncation, "max_length": max_length, "verbose": verbose}
        return self.inner(text, return_tensors=return_tensors, add_special_tokens=add_special_tokens, **how)

    def numbers(self, text: str, *, special: bool = True) -> list[int]:
        """The same tokens of `text` as plain numbers, with `special` ones around them where it has such."""
        return list(self.inner(text, add_special_tokens=special, verbose=False).input_ids)

    @property
    def named(self) -> Mapping[str, Any]:
        return self.inner.special_tokens_map

    def special(self, name: str) -> str:
        """The token that the checkpoint calls so (`image_token`, say); ModelError where it calls none so."""
        if not isinstance(found := getattr(self.inner, name, None), str):
            raise ModelError(f"{self._folder / CONFIG} names no {name}; this model needs one")
        return found

    @property
    def pad(self) -> int:
        """The number of the token that texts are filled up with; ModelError where the checkpoint names none."""
        if self.inner.pad_token_id is None:
            raise ModelError(f"{self._folder / CONFIG} names no pad_token; this model needs one")
        return int(self.inner.pad_token_id)

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return len(self.inner)

    def token(self, id_: int) -> str:
        """The token with this number, as texts have it; empty where there is none."""
        return str(self.inner.convert_ids_to_tokens(id_) or "") if id_ < len(self.inner) else ""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without special tokens."""
        return str(self.inner.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def suffices(folder: Path, kind: str) -> bool:
    """Whether `PlainTokenizer` does what transformers' class `kind` would do with the files in `folder`.

    It looks for reasons against it: files, settings or template functions beyond the known ones, tokens added around
    every text, special tokens that tokenizer.json does not have. ModelError if a file is damaged.
    """
    names = {path.name for path in folder.iterdir()}
    if kind not in KINDS or CONTENT not in names or not names <= {CONTENT, CONFIG, TEMPLATE}:
        return False
    content, settings = read_json(folder / CONTENT), settings_in(folder)
    if content.get("truncation") or content.get("padding") or not _is_known(settings):
        return False
    if not _special_tokens(settings) <= _plain_special_tokens(content):
        return False
    return _adds_nothing(content.get("post_processor")) and _is_renderable(folder)


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
    """Whether the template, if there is one, can be parsed and uses nothing but what it is given."""
    try:
        tree = environment().parse(template_in(folder) or "")
    except (TemplateSyntaxError, RecursionError):
        return False
    return meta.find_undeclared_variables(tree) <= VARIABLES
