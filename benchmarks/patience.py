"""How far from its goal a sample may be that a later step or attack of `standard` breaks.

    python benchmarks/patience.py mnist_cnn@pgd_at 0.3 500

The members of the suite run one after the other, each to its end, on what still stands. For every look of
theirs: of the samples that stood there and that the member broke later (at 0 steps it or a later one), how
close the farthest was; beside it, what `standard` asks for and how many that gives up. The aims of an attack
are one line. The last line is of the suite itself, from the same seeds.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

import zoo
from adversarial_bench.hashing import seed_of
from attacks.core import Goal
from attacks.models import frozen, logits_of
from attacks.objectives import closeness
from attacks.registry import get
from attacks.stops import Never
from attacks.suite import Suite, fitted
from attacks.surrogates import has_steps
from bench.plan import slice_ids
from bench.runner import load_data

BATCH = 500
"""Of the passes that judge."""


@dataclass(frozen=True)
class Watch(Never):
    """Stops nobody, and takes down after each step how close every image of the batch has come."""

    steps: list[Tensor] = field(default_factory=list)

    def __call__(self, logits: Tensor, goal: Goal) -> Tensor:
        near = closeness(logits, goal)
        self.steps.append(self.steps[-1].maximum(near) if self.steps else near)
        return super().__call__(logits, goal)


def main(name: str, eps: float, samples: int) -> None:
    """One line for each look of each member that has any."""
    model, dataset = zoo.load(name), zoo.card(name).dataset
    images, labels = load_data(dataset)
    rows = torch.tensor(slice_ids(dataset, len(images), samples))
    images, labels = images[rows], labels[rows]
    right = logits_of(model, images, BATCH).argmax(1) == labels
    images, goal = images[right], Goal("untargeted", labels[right])
    suite = get("standard").configured(eps=eps)
    assert isinstance(suite, Suite)
    fits = [(k, fitted(member, 10, has_steps(model, images), goal)) for k, member in enumerate(suite.members)]
    members = [(k, fit) for k, fit in fits if fit is not None and "decision" not in fit.tags]

    print(f"{name}, eps {eps:g}, {len(images)} images", flush=True)
    left = torch.arange(len(images))
    came = torch.full((len(images),), -torch.inf)
    # Of each look: who stood, how close they had come, and the place of the member that is asked.
    looks: dict[tuple[str, str, int, float], list[tuple[Tensor, Tensor, int]]] = defaultdict(list)
    fell_to = torch.full((len(images),), -1)
    with frozen(model):
        for place, (k, fit) in enumerate(members):
            watch, seeds = Watch(), [seed_of(row, k) for row in left.tolist()]
            found = replace(fit, stop=watch, patience=()).run(
                model, images[left], goal[left], seeds, len(left)
            )
            # What those before came to is shown of each that gives up, whether or not it looks at that.
            before = {0: -torch.inf} if place and fit.patience else {}
            for at, least in {**before, **dict(fit.patience)}.items():
                stood = left[watch.steps[at] < 0] if at else left
                close = watch.steps[at][watch.steps[at] < 0] if at else came[left]
                looks[fit.name, fit.surrogate, at, least].append((stood, close, place))
            came[left] = came[left].maximum(watch.steps[-1])
            fell = goal[left].reached(logits_of(model, found.images, BATCH))
            fell_to[left[fell]] = place
            left = left[~fell]
        result = suite.run(model, images, goal, range(len(images)), BATCH)
        by_suite = goal.reached(logits_of(model, result.images, BATCH))
    for (attack, surrogate, at, least), parts in looks.items():
        close = torch.cat([near for _, near, _ in parts])
        later = torch.cat(
            [fell_to[who] >= place if not at else fell_to[who] == place for who, _, place in parts]
        )
        farthest = f"the farthest from {float(close[later].min()):.2f}" if later.any() else "none"
        print(
            f"  {attack} surrogate={surrogate}, {at} steps: {len(close)} stood, {int(later.sum())} fell "
            f"later, {farthest}; {int((close < least).sum())} are below {least:g}"
        )
    print(f"  broken by any to its end {int((fell_to >= 0).sum())}, by the suite {int(by_suite.sum())}")


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
