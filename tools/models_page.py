"""`make models`: the families and their published checkpoints as `docs/models.md`, from the specs and nothing else.

A test makes the page again and compares. How large a network is follows from its own class with the defaults of its
configuration, built without memory; a checkpoint whose configuration says otherwise is of another size.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from omnimuse.core.params import DiffusionParams, SpeechParams, TokenParams
from omnimuse.core.spec import Spec
from omnimuse.loader.tensors import outline
from omnimuse.models import REGISTRY

LONGEST = 3600.0  # seconds; a default that every checkpoint cuts to its own length
PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
BEGIN = """# Models

Made by `make models` from what the code declares; do not change it by hand. Any other pipeline in the layout of
diffusers runs, too, through diffusers itself: [diffusers.md](diffusers.md). Different requests to any family here share
forwards, and are cancelled and paused between steps or tokens; what else each has of the engine, and why it lacks what
it lacks, is in [features.md](features.md). `tests/parity` (of what writes and speaks, `tests/invariants`, too) compares
each with diffusers, transformers or its published code in float32; `tests/invariants` has what must hold for all.

## Families

`by` are the commands that ask for it (`omnimuse chat MODEL`, ...), `makes` is all that may come out of one request, the
first of it always or unless otherwise asked. `network` is what is evaluated at every step, with the defaults of its
configuration: billions of parameters, and gigabytes of its weights in bfloat16. The published FLUX.2 Klein, Bria 3.2
(4 billion) and Lucy Edit (5 billion) are smaller than the defaults of their class. `also` are pipelines whose folders
load as this one; a star stands for any name that no other row has.
"""
VARIANTS = """
## Published checkpoints, and what they are asked for by default

A checkpoint is recognised by its id, by its folder, or by what its configuration says. A dash: the model has no such
choice. What is chosen of text and speech where a request does not say, each checkpoint's own `generation_config.json`
says.
"""
THROUGH = """
## Other pipelines of diffusers around these networks

What they do around the network is not written here (a control network, conditions of another kind), so they run through
diffusers itself, with what that means: [diffusers.md](diffusers.md).
"""


def parameters(spec: Spec) -> int:
    """Of the largest network that is evaluated step by step."""
    found = 0
    for name, component in spec.components.items():
        if component.network and name.startswith("transformer"):
            module, _, kind = component.network.partition(":")
            network = outline(partial(getattr(import_module(module), kind).from_config, {}))
            found = max(found, sum(parameter.numel() for parameter in network.parameters()))
    return found


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def family(spec: Spec) -> list[str]:
    """The family's row."""
    size, also = parameters(spec), ", ".join(f"`{name}`" for name in spec.also) or "–"
    own = fields(spec.extra) if issubclass(spec.extra, TokenParams) else ()
    names = [*sorted(spec.supported), *(part.name for part in own)]
    choices = ", ".join(f"`{name}`" for name in names)
    network = f"{size / 1e9:.1f} billion, {2 * size / 1e9:.0f} GB" if size else "of many sizes"
    made = ", ".join(REGISTRY.pipeline(spec.arch).results)
    return [f"`{spec.arch}`", spec.summary, commands(spec), ", ".join(spec.tasks), made, network, choices, also]


def commands(spec: Spec) -> str:
    """Those of the command line that ask for what it makes."""
    if issubclass(spec.extra, SpeechParams):
        return "speak"
    return "chat" if spec.writes else "generate, chat" if spec.converses else "generate"


def size(params: DiffusionParams) -> str:
    """How large, or long, a result is."""
    if params.seconds is not None:
        return f"{params.seconds:g} s" if params.seconds < LONGEST else "the longest it makes"
    if params.num_inference_steps is None:
        return "–"
    frames = "" if params.num_frames is None else f", {params.num_frames} frames"
    return "as the picture" if params.width is None else f"{params.width}x{params.height}{frames}"


def published(spec: Spec) -> list[list[str]]:
    """A row for each id."""
    rows = []
    for variant in spec.variants:
        p = variant.defaults
        scales = [p.true_cfg_scale if p.guidance_scale is None else p.guidance_scale, p.guidance_scale_2]
        guidance = ", ".join(f"{scale:g}" for scale in scales if scale is not None) or "–"
        for model in variant.ids:
            rows.append([f"`{model}`", f"`{spec.arch}`", str(p.num_inference_steps or "–"), guidance, size(p)])
    return rows


def through() -> list[list[str]]:
    """A row for each pipeline of diffusers around a network of ours that no family runs. Its files are only read."""
    specs = REGISTRY.specs()
    ours = {name for spec in specs for part in spec.components.values() if part.network for name in part.classes}
    known = {name for spec in specs for name in (spec.arch, *spec.also)}
    found = find_spec("diffusers")
    assert found is not None and found.origin is not None
    rows = []
    for path in (Path(found.origin).parent / "pipelines").rglob("pipeline_*.py"):
        text = path.read_text(encoding="utf-8")
        for node in ast.parse(text).body if any(name in text for name in ours) else ():
            if isinstance(node, ast.ClassDef) and node.name.endswith("Pipeline") and node.name not in known:
                rows += [[f"`{node.name}`", f"`{name}`"] for name in sorted(_networks(node) & ours)]
    return sorted(rows)


def _networks(pipeline: ast.ClassDef) -> set[str]:
    """The classes that may be given as `transformer`."""
    makers = [node for node in pipeline.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    arguments = [each for maker in makers for each in maker.args.args if each.arg == "transformer" and each.annotation]
    return {name.id for each in arguments for name in ast.walk(each) if isinstance(name, ast.Name)}


def page() -> str:
    """The whole text of `docs/models.md`."""
    specs = sorted(REGISTRY.specs(), key=lambda spec: spec.arch)
    head = ("pipeline", "what it is", "by", "tasks", "makes", "network", "choices beside every model's", "also")
    rows = [row for spec in specs for row in published(spec)]
    return "".join(
        [
            f"{BEGIN}\n{table(head, map(family, specs))}",
            f"{VARIANTS}\n{table(('checkpoint', 'pipeline', 'steps', 'guidance', 'size'), rows)}",
            f"{THROUGH}\n{table(('pipeline', 'network'), through())}",
        ]
    )


def main() -> int:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
