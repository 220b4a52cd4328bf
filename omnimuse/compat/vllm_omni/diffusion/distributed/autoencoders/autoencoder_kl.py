"""`vllm_omni.diffusion.distributed.autoencoders.autoencoder_kl`, and every `autoencoder_kl_NAME` beside it.

Each has a `DistributedAutoencoderKL...` that is the class of diffusers called so: every rank decodes all of it
(`vae_patch_parallel_size` is refused).
"""

from __future__ import annotations

from typing import Any

import diffusers

from omnimuse.compat.contract.names import no_name

PREFIX = "Distributed"


def __getattr__(name: str) -> Any:
    if name.startswith(f"{PREFIX}Autoencoder") and hasattr(diffusers, name.removeprefix(PREFIX)):
        return getattr(diffusers, name.removeprefix(PREFIX))
    raise no_name(__name__, name)
