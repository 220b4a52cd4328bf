"""The stage and loop contracts (seam A), and the data that passes between a loop and whoever runs it.

Model families and the stock stages implement these; the runner calls them. A stage is a description: it holds choices,
never tensors or requests, so that one instance serves every engine.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from omnimuse.ar.elsewhere import Writer
from omnimuse.core.request import Request
from omnimuse.core.spec import Configs, Limits, Size, Spec
from omnimuse.layers.network import Network
from omnimuse.layers.stack import Memory
from omnimuse.lora.adapters import Adapters
from omnimuse.observe.labels import label_of
from omnimuse.offload.residency import Residency
from omnimuse.parallel.mesh import Mesh
from omnimuse.pipeline.arrival import Send, send
from omnimuse.pipeline.memo import Memo
from omnimuse.pipeline.state import State
from omnimuse.pipeline.tiles import Tiling


class Step(NamedTuple):
    """One planned iteration, as data. `scale` is the guidance scale of this step; `branches` what it evaluates.

    A step of a loop that evaluates no rows is only an index.
    """

    index: int  # type: ignore[assignment]  # of a tuple, a method that nobody wants here
    timestep: float = 0.0
    sigma: float = 0.0
    sigma_next: float = 0.0
    network: str = ""
    branches: tuple[str, ...] = ()
    scale: float = 0.0


class Row(NamedTuple):
    """One network evaluation: state x branch x inputs.

    Rows of one network that wears the same may share a forward; `tokens` is the cost of this row. The prediction has
    the shape `shape` and the dtype of the network. One that is evaluated `everywhere` leaves behind what rows of other
    branches look at: of ranks that share branches, each needs it.
    """

    state: State
    branch: str
    network: str
    inputs: Any
    tokens: int
    shape: tuple[int, ...]
    memory: Memory
    everywhere: bool = False

    @property
    def adapters(self) -> tuple[Hashable, ...]:
        """What the network wears for this row."""
        return self.state.adapters((self.network,))


@dataclass
class Context:
    """What a stage may use besides its states: the live components, their configurations, the place of computation.

    Who takes a component out of `components` finds it on the device, until another is taken or the stage ends.
    `adapters` are what its networks wear for some requests, `memo` what equal inputs gave before. `send` begins to copy
    a finished tensor to main memory. What is `lent` lies on that rank alone (`lent.py`). Pictures are decoded by
    `tiling`, if there is one; by `narrow`, if there is one, or smaller ones where there is no room as they usually are.
    """

    spec: Spec
    limits: Limits
    configs: Configs
    components: Residency
    device: torch.device
    dtype: torch.dtype
    mesh: Mesh = field(default_factory=Mesh.single)
    adapters: Adapters = field(default_factory=Adapters.none)
    send: Send = send
    memo: Memo = field(default_factory=lambda: Memo(0))
    tiling: Tiling | None = None
    narrow: Tiling | None = None
    lent: Mapping[str, int] = field(default_factory=dict)

    @property
    def tilings(self) -> list[Tiling]:
        """The tiles in which pictures are decoded, or can be, the largest first."""
        tiling = self.tiling or self.narrow
        return [] if tiling is None else tiling.halves

    @property
    def lean(self) -> Context:
        """The same with less memory: pictures are decoded in tiles where that can be, in smaller ones if they are."""
        tiling = self.narrow if self.tiling is None else self.tiling.smaller or self.tiling
        return replace(self, tiling=tiling)

    def drawing(self, request: Request) -> Context:
        """The same for `request`, which may have to be decoded in tiles; where they are smaller already, in these."""
        found = [tiling for tiling in self.tilings if tiling.pixels == request.tile]
        return replace(self, tiling=found[0]) if found else self

    def network(self, name: str) -> nn.Module:
        """The live component `name` as a network."""
        component = self.components[name]
        assert isinstance(component, nn.Module)
        return component

    @property
    def writers(self) -> list[Writer]:
        """What stands in the place of networks, and writes in processes of its own."""
        parts = (self.components.wherever(name) for name in self.components)
        return [part for part in parts if isinstance(part, Writer)]

    def packing(self, name: str) -> str:
        """How rows share a forward of the network `name`, which need not be on the device for that."""
        network = self.components.wherever(name)
        assert isinstance(network, Network)
        return network.packing


class Stage:
    """One named transformation of states.

    `reads` and `writes` name slots (or request fields), `uses` component names; pipelines check them when the class is
    made. A look at an unfinished output takes the components that it `looks` by, too. Of what it writes, `streams` are
    there as soon as it begins and grow: other tracks may read them meanwhile. One that is `lendable` does nothing but
    write its slots and its note: one rank may run it for all. One that `tiles` takes less memory by smaller tiles; one
    of `whole_clips` decodes all frames of a tile at once. Numbers that it writes are in a format of their own, whatever
    networks compute in, or `computed` by these: then they are in theirs, but for fields of records that are `EXACT`.
    """

    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    looks: ClassVar[tuple[str, ...]] = ()
    streams: tuple[str, ...] = ()
    name: str = ""
    computed: bool = False
    lendable: ClassVar[bool] = False
    tiles: ClassVar[bool] = False
    whole_clips: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """What it is called in recordings and measurements (`observe/labels.py`): by its name, unless it knows."""
        return label_of(self.name)

    def tiled(self, ctx: Context, request: Request) -> Size | None:
        """The pixels of a side of the tiles in which it works on `request`, and from one to the next; None: on it as a
        whole.
        """
        return None

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        """Transform the states in place; the engine gives one at a time."""
        raise NotImplementedError

    def key(self, ctx: Context, state: State) -> Hashable | None:
        """Equal keys promise equal outputs: such states share one run and the outputs may be remembered."""
        return None


class Loop(Stage):
    """A stage that takes many steps. The runner owns the iteration; the loop owns the mathematics.

    The plan of one that `grows` is what is known so far: `apply` may add to it, and no step says of how many it is.
    """

    grows: ClassVar[bool] = False

    @property
    def asks(self) -> bool:
        """Whether a step may need more evaluations when it has seen the first."""
        return type(self).more is not Loop.more

    def skip(self, ctx: Context, state: State) -> bool:
        """Whether nothing is to be done for a state that has just reached it, whose slots are then as they end."""
        return False

    def begin(self, ctx: Context, state: State) -> list[Step]:
        """The plan, as data; also the place to compute what does not depend on the step."""
        raise NotImplementedError

    def tokens(self, ctx: Context, request: Request) -> int:
        """The row tokens of one step of one output, over all branches, which admission counts."""
        return 1

    def remembers(self, ctx: Context, request: Request) -> tuple[int, int]:
        """The bytes that one output comes to remember in this loop, at least and at most, as far as is known before."""
        return 0, 0

    def cost(self, ctx: Context, state: State) -> int:
        """The row tokens of the step that this state takes next; the budget of a tick and fairness count these."""
        return self.tokens(ctx, state.request)

    def ahead(self, ctx: Context, state: State, most: int) -> int:
        """How many steps, `most` at most, one evaluation can take from here on, as nothing is decided between them:
        `rows` and `apply` find in `state.stride` how many it is to take, and `apply` leaves there how many it took.
        """
        return 1

    def ready(self, ctx: Context, state: State) -> bool:
        """Whether there is something to do for its next step, or for its first one; what it waits for, another track
        of the state makes.
        """
        return True

    def rows(self, ctx: Context, state: State, step: Step) -> list[Row]:
        """The evaluations that this step needs; none if the step does its work in `apply` (tiles of a decoder, say)."""
        raise NotImplementedError

    def more(self, ctx: Context, state: State, step: Step, predictions: Mapping[str, Tensor]) -> list[Row]:
        """Evaluations that this step needs besides, which depend on `predictions`, the last ones: asked for again after
        each round of them, until there are none. They share forwards with those of other states.
        """
        return []

    def apply(self, ctx: Context, state: State, step: Step, predictions: Mapping[str, Tensor]) -> None:
        """Guidance, solver, slot update; `predictions` by branch, of the last round."""
        raise NotImplementedError

    def finish(self, ctx: Context, state: State) -> None:
        """After the last step: leave the declared slots in their final form."""

    def peek(self, ctx: Context, state: State) -> Tensor | None:
        """A cheap estimate of the result, for previews: float [3, h, w] in [0, 1] on any device."""
        return None
