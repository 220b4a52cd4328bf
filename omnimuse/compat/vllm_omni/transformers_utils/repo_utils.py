"""`vllm_omni.transformers_utils.repo_utils`: files of other checkpoints, which pipelines ask the hub for.

What is a folder here, or is bundled with us, is never asked from the hub. What the hub does not give ends with what to
do about it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, errors

from omnimuse import __version__
from omnimuse.compat.contract.names import no_name
from omnimuse.core.errors import ModelError
from omnimuse.loader.hub import explain
from omnimuse.loader.resolve import BUNDLED, resolve


class LocalFirst(HfApi):
    """The hub of huggingface_hub, asked for what is not on this machine."""

    def hf_hub_download(self, repo_id: str, filename: str, *besides: Any, **told: Any) -> str:
        """The path of one file; ModelError where it is not here and does not come."""
        if (folder := _here(repo_id)) is None:
            return str(_asked(super().hf_hub_download, repo_id, filename, *besides, **told))
        path = folder / (told.get("subfolder") or "") / filename
        if not path.is_file():
            raise ModelError(f"{folder} has no file {path.relative_to(folder)}; copy it there")
        return str(path)

    def snapshot_download(self, repo_id: str, *besides: Any, **told: Any) -> str:
        """The folder of a repository; ModelError where it is not here and does not come."""
        folder = _here(repo_id)
        return str(folder or _asked(super().snapshot_download, repo_id, *besides, **told))


def _here(repo: str) -> Path | None:
    """The folder of what is on this disk, or bundled."""
    path = Path(repo).expanduser()
    return resolve(repo).path if path.is_dir() or repo.startswith(f"{BUNDLED}/") else None


def _asked(download: Any, repo: str, *besides: Any, **told: Any) -> Any:
    """What the hub gives; ModelError says why it gives nothing, and what to do."""
    try:
        return download(repo, *besides, **told)
    except (errors.HTTPError, OSError, ValueError) as problem:
        if constants.HF_HUB_OFFLINE:
            why = (
                f"{repo} is not whole in the cache and the hub is switched off (HF_HUB_OFFLINE); unset it, or run `hf "
                f"download {repo}` on a machine with a network and copy {constants.HF_HUB_CACHE}"
            )
            raise ModelError(why) from problem
        raise ModelError(explain(problem, repo, told.get("revision"))) from problem


@cache
def hf_api() -> LocalFirst:
    """The hub, as this machine is configured for it (HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE ...)."""
    return LocalFirst(library_name="omnimuse", library_version=__version__)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
