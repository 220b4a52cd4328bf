"""`vllm.model_executor.layers.vocab_parallel_embedding`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from omnimuse.compat.contract.names import no_name


class VocabParallelEmbedding(nn.Embedding):
    """A table of vectors, of which every rank has all: it runs once a request."""

    def __init__(
        self, num_embeddings: int, embedding_dim: int, params_dtype: torch.dtype | None = None, prefix: str = ""
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, dtype=params_dtype)
        self.prefix = prefix


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
