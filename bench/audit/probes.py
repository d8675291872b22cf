"""What an audit asks of the model itself, a few passes over each sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attacks.core import Goal, View
from attacks.draws import hashed
from attacks.models import frozen
from attacks.objectives import LOSSES
from attacks.surrogates import has_steps, smoothed
from bench.audit.subject import Subject
from bench.runner import is_probabilities, passes_of, spread_of

DIRECTIONS = 16
"""Random directions along which a gradient is compared with finite differences."""
NEARBY = 1e-3
"""How far along them, in pixel units."""
FAINT = 1e-12
"""A gradient whose largest entry is below this is called vanishing."""


@dataclass(frozen=True)
class Probed:
    """What the model did on N samples that it has right."""

    spread: float
    """The largest difference between five passes over the same images, in normalised logits."""
    probabilities: bool
    steps: bool
    """It thresholds, rounds or detaches on its way."""
    zero: np.ndarray
    """(N,) the loss's gradient is exactly zero, or there is none."""
    faint: np.ndarray
    """(N,) it is not zero, and no entry reaches `FAINT`."""
    rises: np.ndarray
    """(N,) the loss rises after a step along the gradient's sign.

    The step is eps / 20, or eps / 4 for a model of steps, which may not answer to less.
    """
    agrees: np.ndarray
    """(N,) along most random directions, loss and gradient agree on which way is up."""
    saturated: np.ndarray
    """(N,) softmax gives the label exactly 1 in float32: cross-entropy is exactly 0."""

    @property
    def n(self) -> int:
        """Samples; of a model that draws at random, not always as many as an attack found right."""
        return len(self.zero)


def probe(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    seeds: Sequence[int],
    subject: Subject,
    eps: float,
    batch_size: int,
) -> Probed:
    """Probes a model on images (N, C, H, W) that it has right; `seeds` (N,) draw the directions."""
    parts: list[tuple[Tensor, ...]] = []
    passes = passes_of(model, images[:batch_size])
    with frozen(model):
        stepped = has_steps(model, images)
        with smoothed(model, images, subject.surrogate, 1.0) as shown:
            for start in range(0, len(images), batch_size):
                rows = slice(start, start + batch_size)
                drawn = torch.tensor(seeds[rows], device=images.device)
                step = eps / 4 if stepped else eps / 20
                parts.append(_batch(model, shown, images[rows], labels[rows], drawn, subject, step))
    columns = [torch.cat(column).cpu().numpy() for column in zip(*parts)]
    return Probed(spread_of(passes), is_probabilities(passes[0]), stepped, *columns)


@contextmanager
def _same_draws(seeds: Tensor) -> Iterator[None]:
    """Inside, a model that draws gives a batch what it gave it before: what differs is the images' doing."""
    with torch.random.fork_rng():
        torch.manual_seed(int(seeds[0]))
        yield


def _batch(
    model: Callable[[Tensor], Tensor],
    shown: Callable[[Tensor], Tensor],
    x0: Tensor,
    labels: Tensor,
    seeds: Tensor,
    subject: Subject,
    step: float,
) -> tuple[Tensor, ...]:
    loss, goal = LOSSES[subject.loss], Goal("untargeted", labels)

    def value(x: Tensor, logits: Tensor) -> Tensor:
        return loss(View(x, x0, logits, goal))

    @torch.no_grad()
    def height(x: Tensor) -> Tensor:
        # What is measured is the model, and not the loss's own rounding: in float64, and for cross-entropy,
        # which rounds to 0 where the network is sure, the log-odds that it grows with.
        with _same_draws(seeds):
            seen = model(x).double()
        if subject.loss != "ce":
            return value(x, seen)
        own = seen.gather(1, labels[:, None])
        return (seen.scatter(1, labels[:, None], float("-inf")).logsumexp(1, keepdim=True) - own).squeeze(1)

    x = x0.clone().requires_grad_()
    with torch.enable_grad(), _same_draws(seeds):
        logits = shown(x)
        grad = torch.zeros_like(x0)
        if logits.requires_grad:
            (found,) = torch.autograd.grad(value(x, logits).sum(), x, allow_unused=True)
            grad = grad if found is None else found
    largest = grad.flatten(1).abs().amax(1)
    own = logits.detach().float().softmax(1).gather(1, labels[:, None]).squeeze(1)
    here = height(x0)
    rises = height((x0 + step * grad.sign()).clamp(0, 1)) > here

    votes = torch.zeros(len(x0), device=x0.device)
    for k in range(DIRECTIONS):
        # Into the box from wherever the image lies: at a pixel of 0 only up, at 1 only down.
        signs = (hashed(seeds, k, x0[0].numel()) - 0.5).sign().view_as(x0)
        moved = (x0 + NEARBY * signs).clamp(0, 1)
        slope = ((moved - x0).double() * grad.double()).flatten(1).sum(1)
        change = height(moved) - here
        votes += (slope.sign() == change.sign()) & (slope != 0)
    agrees = votes > DIRECTIONS / 2
    return largest == 0, (largest > 0) & (largest < FAINT), rises, agrees, own == 1
