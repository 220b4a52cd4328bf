"""A layer of experts, of which each token asks a few: the MLP of many decoders.

Every expert is two linear layers, as any other MLP: so they are packed in fewer bits, and wait outside the device, as
others do. The arithmetic is that of transformers' `Qwen3OmniMoeThinkerTextSparseMoeBlock`.

Letters: B S of hidden states as they come, T tokens of all, D width, K experts that a token asks, R rows that ask one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from omnimuse.ar.remembering import Conditions
from omnimuse.components.decoder import DecoderLayer, JoinedMLP
from omnimuse.components.experts_facts import ExpertsFacts


class Experts(nn.Module):
    """What the likeliest experts of each token say, weighted by how likely they are: [B, S, D] -> [B, S, D]."""

    def __init__(self, width: int, facts: ExpertsFacts) -> None:
        super().__init__()
        self.facts = facts
        self.router = nn.Linear(width, facts.num_experts, bias=False)
        self.experts = nn.ModuleList(JoinedMLP(width, facts.moe_intermediate_size) for _ in range(facts.num_experts))
        self.total = nn.Identity()  # of what ranks make, who may have parts of every expert

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)  # [T, D]
        weights, asked = self.router(tokens).softmax(-1, dtype=torch.float32).topk(self.facts.num_experts_per_tok)
        if self.facts.norm_topk_prob:
            weights = weights / weights.sum(-1, keepdim=True)  # [T, K]
        weights, found = weights.to(x.dtype), torch.zeros_like(tokens)
        said = asked.flatten().cpu()  # the one thing that the host waits for
        experts, each = said.unique(return_counts=True)
        places = said.argsort(stable=True).to(x.device, non_blocking=True).split(each.tolist())
        # One token of each row is [R, 1, D] to experts, too, by which their layers know that few are multiplied.
        asking = tokens[:, None] if x.shape[1:-1] == (1,) else tokens
        for expert, place in zip(experts.tolist(), places, strict=True):
            token = place // asked.shape[1]
            made = self.experts[expert](asking[token]).view(len(token), -1)
            found.index_add_(0, token, made * weights.view(-1)[place, None])
        return self.total(found).view_as(x)


class SharedExperts(Experts):
    """The same, and beside it what one says whom every token asks, `shared` wide, as far as a gate lets it."""

    def __init__(self, width: int, facts: ExpertsFacts, shared: int) -> None:
        super().__init__(width, facts)
        self.shared_expert = JoinedMLP(width, shared)
        self.shared_expert_gate = nn.Linear(width, 1, bias=False)
        self.far = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.far(self.shared_expert_gate(x)) * self.shared_expert(x)


class ExpertsLayer(DecoderLayer):
    """A layer whose MLP are experts. Which of them tokens ask, and how many ask one, is not for a compiler."""

    def before(self, hidden: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """The hidden states after what their attention has `seen`, [B, S, N H], as they are and as experts get them."""
        hidden = hidden + self.self_attn.o_proj(seen)
        return hidden, self.post_attention_layernorm(hidden)

    pieces = (DecoderLayer.made, before)

    def forward(self, hidden: Tensor, cond: Conditions) -> Tensor:
        hidden, normed = self.piece(self.pieces[1])(self, hidden, self.seen(hidden, cond))
        return hidden + self.mlp(normed)
