"""`vllm.model_executor.layers.vocab_parallel_embedding`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from omnimuse.compat.contract.names import no_name
from omnimuse.core.errors import ModelError


class VocabParallelEmbedding(nn.Embedding):
    """A table of vectors, of which every rank has all: it runs once a request."""

    def __init__(
        self, num_embeddings: int, embedding_dim: int, params_dtype: torch.dtype | None = None, prefix: str = ""
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, dtype=params_dtype)
        self.prefix = prefix


class ParallelLMHead(VocabParallelEmbedding):
    """The same table at the end of a network, of which only weights are read: encoders hand on hidden states."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        bias: bool = False,
        params_dtype: torch.dtype | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, params_dtype, prefix)
        if bias:
            self.bias = nn.Parameter(torch.zeros(num_embeddings, dtype=params_dtype))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        raise ModelError("logits are not computed here: models that write are ours (docs/models.md)")


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
