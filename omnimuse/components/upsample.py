"""Upsampling and the convolution after it, as one. Decoders of images and of videos use it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def upsample(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Every cell four times, then `conv` (3x3, padding 1): [B, C in, h, w] -> [B, C out, 2h, 2w].

    Both at once: of the nine cells under the kernel only four differ, so a transposed convolution by the kernel's sums
    over equal cells does the same with 4/9 of the multiplications. The sums are made anew at every call: that takes
    little, and they are right wherever the weights were moved to or come from.
    """
    order = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    kernel = conv.weight.transpose(0, 1).contiguous(memory_format=order)  # [C in, C out, 3, 3]
    kernel = kernel.flip(2, 3)  # a transposed convolution turns its kernel round
    sums = F.avg_pool2d(kernel, 2, stride=1, padding=1, divisor_override=1)  # [C in, C out, 4, 4]
    return F.conv_transpose2d(x, sums, conv.bias, stride=2, padding=1)
