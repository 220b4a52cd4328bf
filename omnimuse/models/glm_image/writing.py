"""The loop in which GLM-Image's language model writes what is in a picture, before it is drawn.

It is one like denoising, under the same runner: a state's next step reads up to `CHUNK` tokens that its memory does
not have yet, a piece of the brief or the token that was written last. How many it writes, the size says beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from omnimuse.ar.sampling import Sampling, next_token
from omnimuse.components.sights import Seeing
from omnimuse.core.errors import RequestError
from omnimuse.core.params import GenerationParams
from omnimuse.core.request import Request
from omnimuse.core.spec import GENERATION, Configs
from omnimuse.layers.stack import Memory
from omnimuse.models.glm_image.language import GlmImageWriter
from omnimuse.models.glm_image.reading import finer, language
from omnimuse.models.glm_image.spec import LANGUAGE, GlmImageParams
from omnimuse.pipeline.generate import CHUNK
from omnimuse.pipeline.stage import Context, Loop, Row, Step
from omnimuse.pipeline.state import State


@dataclass(frozen=True)
class WritePrior(Loop):
    """From `brief` to `prior`, int64 [patches of the picture]; `kv` is what is remembered meanwhile.

    Tokens are chosen with a generator of its own of the output's seed, as the reference has it. Nothing is written
    where whoever asks gives the tokens.
    """

    name: str = "write prior"
    reads: tuple[str, ...] = ("brief",)
    writes: tuple[str, ...] = ("kv", "prior")
    uses: tuple[str, ...] = (LANGUAGE,)

    def skip(self, ctx: Context, state: State) -> bool:
        if state["brief"] is not None:
            return False
        extra = state.request.extra
        assert isinstance(extra, GlmImageParams)
        state["kv"], state["prior"] = None, codes(ctx, "prior_token_ids", extra.prior_token_ids)
        return True

    def begin(self, ctx: Context, state: State) -> list[Step]:
        brief, working = state["brief"], state.working
        network = ctx.components.wherever(LANGUAGE)
        assert isinstance(network, GlmImageWriter)
        working["how"] = sampling(ctx.configs)
        working["generator"] = torch.Generator().manual_seed(state.request.seed(state.output))
        working["tokens"], working["remembered"], working["turns"] = brief.ids, 0, network.turns(brief.places)
        state["kv"] = network.memory(brief.places.shape[1], ctx.device)
        steps = -(-len(brief.ids) // CHUNK) + brief.writes - 1  # the last piece of the brief gives the first token
        return [Step(index, network=LANGUAGE) for index in range(steps)]

    def tokens(self, ctx: Context, request: Request) -> int:
        return 1

    def cost(self, ctx: Context, state: State) -> int:
        working = state.working
        return min(CHUNK, len(working["tokens"]) - working["remembered"])

    def rows(self, ctx: Context, state: State, step: Step) -> list[Row]:
        start, tokens = state.working["remembered"], state.working["tokens"]
        ids = tokens[start : start + CHUNK]
        turns = state.working["turns"][:, start : start + len(ids)]
        return [
            Row(
                state=state,
                branch="positive",
                network=LANGUAGE,
                inputs=Seeing(ids, start, state["kv"], turns=turns),
                tokens=len(ids),
                shape=(),
                memory=Memory(),
            )
        ]

    def apply(self, ctx: Context, state: State, step: Step, predictions: Mapping[str, Tensor]) -> None:
        working = state.working
        working["remembered"] += self.cost(ctx, state)
        if working["remembered"] < len(working["tokens"]):
            return  # more of the brief is to be read
        token = self._choose(ctx, state, predictions["positive"].cpu())
        working["tokens"] = torch.cat([working["tokens"], working["tokens"].new_full((1,), token)])

    def finish(self, ctx: Context, state: State) -> None:
        rows, columns = state["brief"].draws[-1]
        state["prior"] = finer(state.working["tokens"][-rows * columns :].view(rows, columns))

    def _choose(self, ctx: Context, state: State, logits: Tensor) -> int:
        """The next token of logits [V]. One that cannot be drawn, on which the reference ends, is chosen once more."""
        how, generator, read = state.working["how"], state.working["generator"], ()
        written = len(state.working["tokens"]) - len(state["brief"].ids)
        token = next_token(logits, read, written, how, generator)
        rows, columns = state["brief"].draws[-1]
        drawn = written >= state["brief"].writes - rows * columns
        if token not in how.ends and (token < most_codes(ctx.configs) or not drawn):
            return token
        no_codes = range(most_codes(ctx.configs), len(logits))
        return next_token(logits, read, written, replace(how, suppressed=(*how.suppressed, *no_codes)), generator)


def sampling(configs: Configs) -> Sampling:
    """How tokens are chosen: as the checkpoint's generation_config.json says, but always drawn."""
    told: dict[str, Any] = dict(configs.get(f"{LANGUAGE}/{GENERATION}", {}))
    config = language(configs[LANGUAGE])
    told.setdefault("eos_token_id", config.get("eos_token_id"))
    return Sampling.of(GenerationParams(), {**told, "do_sample": True})


def most_codes(configs: Configs) -> int:
    """How many tokens of a prior there are."""
    most = configs["transformer"]["prior_vq_quantizer_codebook_size"]
    assert isinstance(most, int)
    return most


def codes(ctx: Context, name: str, ids: tuple[int, ...]) -> Tensor:
    """Tokens that were given, int64 [S]; RequestError for one that the checkpoint does not know."""
    most = most_codes(ctx.configs)
    if unknown := [token for token in ids if not 0 <= token < most]:
        raise RequestError(f"extra.{name} has {unknown[0]}; this checkpoint knows 0 to {most - 1}", f"extra.{name}")
    return torch.tensor(ids, dtype=torch.int64, device=ctx.device)
