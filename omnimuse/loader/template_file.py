"""Where the chat template of a checkpoint is written. Used by `tokenizer`, which renders it, and by `checkpoint`, which
asks what it tells of. No torch, and no jinja: what is read here is not parsed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omnimuse.core.amounts import told_bytes
from omnimuse.core.errors import ModelError
from omnimuse.loader.files import AGAIN, read_json

CONFIG, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
OLD_TEMPLATE = "chat_template.json"
LONGEST = 2**20
"""Bytes of a template in a file of its own."""


def settings_in(folder: Path) -> Mapping[str, Any]:
    """What tokenizer_config.json says; nothing, if there is none."""
    return read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}


def template_in(folder: Path) -> Any:
    """The template of the tokenizer in `folder`; None without. ModelError for one that is too long."""
    file = folder / TEMPLATE
    if not file.is_file():
        return settings_in(folder).get("chat_template")
    if file.stat().st_size > LONGEST:
        raise ModelError(f"{file} has more than {told_bytes(LONGEST)}, and no template has; {AGAIN}")
    return file.read_text(encoding="utf-8")


def template_beside(folder: Path) -> str | None:
    """The template in a file of its own, as processors of transformers had it before version 5; None without."""
    file = folder / OLD_TEMPLATE
    found = read_json(file).get("chat_template") if file.is_file() else None
    return found if isinstance(found, str) else None
