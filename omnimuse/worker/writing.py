"""Who writes: the networks of this process that another engine stands in for, and that engine.

A build pass for each of the two; the first refuses what cannot be, the second takes as long as the other engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from omnimuse.ar.elsewhere import Writer
from omnimuse.attention.selection import AUTO
from omnimuse.core.config import Choice
from omnimuse.core.errors import ConfigError
from omnimuse.pipeline.generate import Generate
from omnimuse.worker.find import pipeline_for
from omnimuse.worker.part import part_of

if TYPE_CHECKING:
    from omnimuse.worker.build import Build


def replace_writer(under: Build) -> None:
    """The one network in whose place another engine writes, if that was asked for."""
    found = under.found
    if (config := found.config.writer).engine == "own":
        return
    what = f"writer={config.engine}"
    if found.spec.library:
        raise ConfigError(f"{what} cannot be: {found.spec.library} runs this pipeline; leave it out")
    part = part_of(found.config, found.spec)
    stages = pipeline_for(found.spec).stages
    here = stages if part is None else stages[part.start : part.stop]
    lent = {stage.network for stage in here if isinstance(stage, Generate) and stage.only_tokens}
    if len(lent) != 1 or any(not isinstance(stage, Generate) and lent & set(stage.uses) for stage in here):
        raise ConfigError(
            f"{what} cannot be: no stage of {found.spec.arch} here wants nothing but tokens of a network, as a model "
            "that writes only text does; leave it out"
        )
    if under.mesh.size > 1:
        raise ConfigError(f"{what} and {under.mesh.size} ranks do not go together; use replicas")
    if found.config.model.load == "dummy":
        raise ConfigError(f"{what} reads the weights itself, and load=dummy reads none; use load=weights")
    [under.replaced] = lent
    if under.replaced in found.config.quantize.schemes:
        raise ConfigError(
            f"{what} and quantize {under.replaced} do not go together: our packings are ours; leave one out"
        )
    if not any(each.network and name != under.replaced for name, each in found.spec.components.items()):
        _refuse_what_is_ours(under, what)
    where = config.python or "this Python"
    under.choices.append(Choice("writing", under.replaced, config.engine, f"asked for; {where} runs it"))


def _refuse_what_is_ours(under: Build, what: str) -> None:
    """Choices of how networks of ours run, where the model has none beside the one that runs elsewhere."""
    config = under.found.config
    chosen = {
        f"quantize {config.quantize.schemes.get('')}": "" in config.quantize.schemes,
        f"compile={config.compile.mode}": config.compile.mode != "none",
        f"offload={config.offload.mode}": config.offload.mode != "none",
        f"tier={config.schedule.tier}": config.schedule.tier in ("invariant", "exact"),
        f"attention={config.attention.default}": config.attention.default != AUTO,
        f"attention by role ({', '.join(config.attention.per_role)})": bool(config.attention.per_role),
        f"kernels={config.kernels.mode}": config.kernels.mode != "auto",
    }
    for name, given in chosen.items():
        if given:
            why = f"{under.replaced} is all that runs, and {config.writer.engine} runs it by its own rules"
            raise ConfigError(f"{what} and {name} do not go together: {why}; leave one out")


def start_writer(under: Build) -> None:
    """The other engine, ready to write, where its network would be."""
    if not under.replaced:
        return
    found = under.found
    writer = Writer(
        found.config.writer,
        found.checkpoint.path(under.replaced),
        under.dtype,
        under.device,
        found.door.limits.max_sequence_length,
    )
    under.resources.callback(writer.close)
    under.components[under.replaced] = writer
    under.choices.append(Choice("writing", f"{under.replaced} version", writer.version, f"process {writer.process}"))
