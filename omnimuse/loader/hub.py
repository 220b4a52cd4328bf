"""Gets a checkpoint from the Hugging Face hub, or from its cache on this disk.

Called by `resolve` only. Downloads nothing but JSON, tokenizer files, voices and the safetensors of the components;
failures become a ModelError that says what to do. `huggingface_hub` is imported when needed; no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from omnimuse.core.errors import ModelError
from omnimuse.core.layouts import laid_out
from omnimuse.loader.checkpoint import BESIDE, CONFIGS, GENERATION, INDEX, Checkpoint
from omnimuse.loader.files import PICKLES, few
from omnimuse.loader.voices import VOICES
from omnimuse.media.destination import write_whole

SMALL = ("*.json", "*.txt", "*.model", "*.jinja", VOICES)
"""Files that are small: configurations, vocabularies, tokenizer models, chat templates."""

ID = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(@(?P<revision>(?!.*\.\.)[A-Za-z0-9][\w./-]*))?"
)
"""`owner/name`, optionally with a branch, tag or commit."""

_COMMIT = re.compile(r"[0-9a-f]{40}")

_VARIANT = re.compile(r"\.(?P<variant>[^./]+)(-\d{5}-of-\d{5})?\.safetensors$|\.index\.(?P<index>[^./]+)\.json$")


@dataclass(frozen=True)
class Hub:
    """The hub at `endpoint` (None: the configured one) and its cache; `offline` never asks the network."""

    cache: Path
    endpoint: str | None = None
    offline: bool = False

    @staticmethod
    def standard() -> Hub:
        """The hub as huggingface_hub is configured (HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE...)."""
        from huggingface_hub import constants

        return Hub(Path(constants.HF_HUB_CACHE), None, constants.HF_HUB_OFFLINE)

    def cached_ids(self) -> list[str]:
        """Ids of the cached models that are a diffusers pipeline, or write; sorted."""
        return sorted(repo for repo, folder in self._cached() if any(map(is_model, folder.glob("snapshots/*"))))

    def cached(self, repo: str, revision: str | None) -> Path | None:
        """The snapshot of `repo` in the cache, complete or not; None if there is none."""
        folder = self.cache / ("models--" + repo.replace("/", "--"))
        reference = folder / "refs" / (revision or "main")
        commit = reference.read_text().strip() if reference.is_file() else revision
        snapshot = folder / "snapshots" / commit if commit else None
        return snapshot if snapshot and snapshot.is_dir() else None

    def _remember(self, repo: str, revision: str, commit: str) -> None:
        """Note in the cache that `revision` is `commit`, which the hub's library does for names only."""
        if revision != commit:
            folder = self.cache / ("models--" + repo.replace("/", "--"))
            write_whole(folder / "refs" / revision, commit.encode())

    def _cached(self) -> Iterator[tuple[str, Path]]:
        for folder in self.cache.glob("models--*--*"):
            yield folder.name.removeprefix("models--").replace("--", "/", 1), folder

    def get(self, repo: str, revision: str | None) -> Path:
        """The folder of `repo`: from the cache if it is complete there, else downloaded. ModelError says why not."""
        here = self.cached(repo, revision)
        problem = why_incomplete(here) if here else None
        if here and problem is None:
            return here
        if self.offline:
            state = f"is only partly in the cache ({problem})" if here else "is not in the cache"
            raise ModelError(
                f"{repo} {state} and the hub is switched off (HF_HUB_OFFLINE); unset HF_HUB_OFFLINE, run `hf download "
                f"{repo}` on a machine with a network and copy {self.cache}, or give the path of a local folder"
            )
        return self._download(repo, revision)

    def _download(self, repo: str, revision: str | None) -> Path:
        from huggingface_hub import HfApi, errors, snapshot_download

        try:
            about = HfApi(endpoint=self.endpoint).model_info(repo, revision=revision)  # fails at once without network
            wanted = wanted_files(repo, [sibling.rfilename for sibling in about.siblings or ()])
            commit = str(about.sha)
            if not _COMMIT.fullmatch(commit):
                raise ModelError(
                    f"the hub says that {repo} is at commit {commit[:80]!r}, which is none; try again later"
                )
            folder = snapshot_download(
                repo,
                revision=commit,  # what was listed, whatever has become of the branch since
                cache_dir=self.cache,
                endpoint=self.endpoint,
                allow_patterns=wanted,
            )
            self._remember(repo, revision or "main", commit)
            return Path(folder)
        except (
            errors.HTTPError,
            OSError,
            ValueError,
        ) as problem:  # HTTPError: of the client it uses, also for no network
            raise ModelError(explain(problem, repo, revision)) from problem


def why_incomplete(folder: Path) -> str | None:
    """Why the snapshot in `folder` cannot be used as it is; None if it can."""
    try:
        return Checkpoint(folder).incomplete()
    except ModelError as problem:
        return str(problem)


def is_model(folder: Path) -> bool:
    """Whether `folder` is a pipeline in the layout of diffusers, or a model that writes in that of transformers."""
    return (folder / INDEX).is_file() or _writes([path.name for path in folder.iterdir()])


def _writes(names: Iterable[str]) -> bool:
    """Whether files of these `names` are a language model as transformers saves one, which says how it generates, or a
    model in a layout of its own.
    """
    found = set(names)
    return {CONFIGS[0], GENERATION} <= found or laid_out(found) is not None


def wanted_files(repo: str, files: Iterable[str]) -> list[str]:
    """Those of a repository's `files` that a model needs; ModelError if it is not one that can be read.

    Of a pipeline, weights beside `model_index.json` (single-file copies) and variants of weights that exist plain are
    left out; of a language model, what is in folders that are no components (copies for other libraries).
    """
    names = sorted(files)
    flat = INDEX not in names
    if flat and not _writes(names):
        raise ModelError(
            f"{repo} on the hub has no {INDEX}, so it is not a pipeline in the diffusers layout "
            f"(it holds {few(names)}), and no {CONFIGS[0]} beside {GENERATION}, which a language model has; look for a "
            "repository of the same model whose name ends in -Diffusers, or convert it with diffusers"
        )
    names = [name for name in names if not flat or "/" not in name or name.partition("/")[0] in BESIDE]
    weights = [name for name in names if (flat or "/" in name) and name.endswith(".safetensors")]
    if not weights:
        pickles = [name for name in names if name.endswith(PICKLES)]
        raise ModelError(
            f"{repo} on the hub has no *.safetensors weights"
            + ("" if flat else " in its component folders")
            + (f", only pickles ({few(pickles)}), which can run any code when opened" if pickles else "")
            + "; use a revision or repository that has safetensors"
        )
    plain = {PurePosixPath(name).parent for name in weights if not _VARIANT.search(name)}
    small = [name for name in names if any(fnmatch(name, pattern) for pattern in SMALL)]
    return [name for name in small + weights if not (_VARIANT.search(name) and PurePosixPath(name).parent in plain)]


def explain(problem: Exception, repo: str, revision: str | None) -> str:
    """What a failure of the hub means for a person, and what to do."""
    from huggingface_hub import errors

    match problem:
        case errors.GatedRepoError():
            return (
                f"{repo} is gated: accept its terms at https://huggingface.co/{repo}, then run `hf auth login` "
                "(or set HF_TOKEN) and try again"
            )
        case errors.RepositoryNotFoundError():
            return (
                f"{repo} does not exist on the hub, or it is private: check the spelling; for a private model run "
                "`hf auth login` or set HF_TOKEN"
            )
        case errors.RevisionNotFoundError():
            return (
                f"{repo} has no revision {revision!r}: use a branch, tag or commit that exists, or leave out "
                f"`@{revision}`"
            )
        case errors.HfHubHTTPError() if problem.response.status_code == 429:
            return f"the hub refuses more requests for now ({problem}); wait a few minutes and try again"
        case errors.HfHubHTTPError():
            return f"the hub answered with an error for {repo} ({problem}); try again later, or give a local folder"
        case OSError() if problem.errno is not None and not isinstance(problem, ConnectionError):
            return f"{repo} cannot be stored ({problem}); free the disk or set HF_HOME to a folder with space"
    return (
        f"{repo} is not on this machine and the hub cannot be reached ({type(problem).__name__}: {problem}); check the "
        "network, or give the path of a local folder"
    )
