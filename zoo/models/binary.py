"""The binarised activation of HW2 §2: Sign forward, a clipped straight-through gradient backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class SignFunction(torch.autograd.Function):
    """sign(x) = +1 for x >= 0, else -1; its gradient is 1 for |x| <= 1, else 0.

    Any shape and float type. Source: HW2 §2; the estimator is Hubara et al. 2016, equation 4
    (arXiv:1602.02830).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad_outputs[0] * (x.abs() <= 1)


class Sign(nn.Module):
    """`SignFunction` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return SignFunction.apply(x)
