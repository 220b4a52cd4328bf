"""Memory that one request takes beside the weights: ours and the reference's, for every family, as a table of ratios.

    python -m benchmarks.peaks [-k FLUX] [--larger 4] [--dtype bfloat16]

Tiny random checkpoints, on a CPU, the request of each family's tests with sides that are `--larger` times as
long, or as far as the model goes. What counts is the most that torch had allocated over what it had when the first
layer was called: activations, latents, what a decoder makes and what is kept between steps, to the byte and the same in
every run. Beside it stands by how little at the least a row is reckoned to take when its request comes.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from diffusers import DiffusionPipeline, ModelMixin
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.profiler import record_function
from transformers import PreTrainedModel

from omnimuse.core.config import Config, HostConfig, ModelConfig
from omnimuse.core.request import Ask
from omnimuse.engine.local import finished, start
from omnimuse.loader.components import quiet
from omnimuse.models import REGISTRY
from omnimuse.observe.profile import allocated, recorded_events
from omnimuse.worker.find import find
from omnimuse.worker.place import DTYPES
from tests.checkpoints.families import FAMILIES
from tests.checkpoints.wishes import Family, Wish

BEGINNING = "the first layer"


def peak_of(work: Callable[[], object]) -> int:
    """Bytes that torch allocated for `work` at most, over those there were at its first layer."""
    begun: list[bool] = []

    def mark(module: nn.Module, given: object) -> None:
        if not begun:
            begun.append(True)
            with record_function(BEGINNING):
                pass

    hook = register_module_forward_pre_hook(mark)
    try:
        events = recorded_events(work)
    finally:
        hook.remove()
    [began] = [float(event["ts"]) for event in events if event.get("name") == BEGINNING and event["ph"] == "X"]
    level, before, most = 0, 0, 0
    for at, size in sorted(allocated(events)):
        level += size
        if at < began:
            before = level
        else:
            most = max(most, level)
    return most - before


@dataclass(frozen=True)
class Compared:
    """Bytes: what a request takes of us and of the reference, and what a row was reckoned to take at the least."""

    ours: int
    theirs: int
    reckoned: int


def ours(folder: Path, wish: Wish, dtype: str, reckoned: list[int]) -> Callable[[], None]:
    """Draw `wish` by our engine, which is begun within; `reckoned` gets what it says of it before."""

    def work() -> None:
        alike = HostConfig(threads=torch.get_num_threads())  # as many as the reference has
        engine = start(Config(ModelConfig(str(folder), dtype=dtype, device="cpu"), host=alike))
        request = engine.make_request(Ask(wish.asked, replace(wish.params, output_type="pt")))
        reckoned.append(engine.runner.working(request, engine.space.tokens))
        finished(engine, request)
        engine.close()

    return work


@contextmanager
def loaded_in(dtype: str, arch: str) -> Iterator[None]:
    """While this lasts references, which say float32, load networks in `dtype`, but for components that we have in
    another one, too.
    """
    kept = {name: DTYPES[part.dtype] for name, part in REGISTRY.spec(arch).components.items() if part.dtype}

    def loading(load: Any) -> classmethod[Any, Any, Any]:
        def from_pretrained(cls: type, folder: Any, **options: Any) -> Any:
            named = next((name for name in ("dtype", "torch_dtype") if name in options), "torch_dtype")
            own = kept.get(Path(folder).name, DTYPES[dtype])  # of a component, whose folder has its name
            chosen = {"default": own, **kept} if issubclass(cls, DiffusionPipeline) else own
            return load.__func__(cls, folder, **{**options, named: chosen})

        return classmethod(from_pretrained)

    def sharing(share: Any) -> classmethod[Any, Any, Any]:
        def from_pipe(cls: type, pipeline: Any, **options: Any) -> Any:
            return share.__func__(cls, pipeline, **{**options, "dtype": pipeline.dtype})

        return classmethod(from_pipe)

    with ExitStack() as stack:
        if dtype != "float32":
            stack.enter_context(patch.object(DiffusionPipeline, "from_pipe", sharing(DiffusionPipeline.from_pipe)))
        for kind in (DiffusionPipeline, ModelMixin, PreTrainedModel) if dtype != "float32" else ():
            stack.enter_context(patch.object(kind, "from_pretrained", loading(kind.from_pretrained)))
        yield


def compare(family: Family, folder: Path, larger: int, dtype: str) -> Compared:
    """Draw the first request of `family` by both."""
    [wish, *_] = family.wishes
    p = wish.params
    if p.width is not None and p.height is not None and not wish.params.extra:  # which may be made for its size
        limits = find(Config(ModelConfig(str(folder), dtype=dtype, device="cpu"))).door.limits
        larger = min(larger, limits.max_side // max(p.width, p.height))
        wish = replace(wish, params=replace(p, width=p.width * larger, height=p.height * larger))

    def theirs() -> None:
        with warnings.catch_warnings(), quiet("diffusers"), quiet("transformers"):
            warnings.simplefilter("ignore")
            with loaded_in(dtype, family.arch):
                family.reference(folder, [wish], "pt")

    reckoned: list[int] = []
    return Compared(peak_of(ours(folder, wish, dtype, reckoned)), peak_of(theirs), *reckoned)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-k", nargs="*", default=[""], help="families whose names have one of these in them")
    parser.add_argument("--larger", type=int, default=4, help="times the sides of the tests' requests")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    torch.set_num_threads(2)
    print("| family | ours, KiB | the reference's | ratio | reckoned over ours |\n|---|---|---|---|---|")
    for family in FAMILIES:
        if not any(part.lower() in family.name.lower() for part in options.k):
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = compare(family, family.build(Path(folder) / "model"), options.larger, options.dtype)
            except Exception as problem:  # a table of all families is worth more than one row
                print(f"| {family.name} | {type(problem).__name__}: {problem!s:.150} | | | |", flush=True)
                continue
        sizes = f"{found.ours / 1024:.0f} | {found.theirs / 1024:.0f} | {found.ours / found.theirs:.4f}"
        print(f"| {family.name} | {sizes} | {found.reckoned / found.ours:.2f} |", flush=True)


if __name__ == "__main__":
    main()
