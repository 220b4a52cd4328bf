"""What a device multiplies natively."""

from __future__ import annotations

import torch


def native_bfloat16(device: torch.device) -> tuple[bool, str]:
    """Whether `device` multiplies bfloat16 natively, and how that is known."""
    if device.type == "cpu":
        known = torch.cpu.get_capabilities()
        units = [name for name in ("amx_bf16", "avx512_bf16", "bf16") if known.get(name)]
        if units:
            return True, f"this processor computes bfloat16 natively ({', '.join(units)})"
        return False, "this processor has no bfloat16 units, which would make it slow"
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
        return native, f"{torch.cuda.get_device_name(device)} {'has' if native else 'lacks'} bfloat16 units"
    return False, f"nothing is known about bfloat16 on {device.type}"
