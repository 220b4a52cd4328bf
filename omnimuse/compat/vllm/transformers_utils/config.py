"""`vllm.transformers_utils.config`: small files of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omnimuse.compat.contract.names import no_name
from omnimuse.compat.vllm_omni.transformers_utils.repo_utils import hf_api
from omnimuse.core.errors import ModelError


def get_hf_file_to_dict(file_name: str, model: str | Path, revision: str | None = "main") -> dict[str, Any] | None:
    """The content of a JSON file of a checkpoint; None where there is no such file."""
    try:
        path = hf_api().hf_hub_download(str(model), file_name, revision=revision)
    except ModelError:
        return None
    found: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return found


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
