"""An audit from the model to its verdict, and the verdict where leaderboards find it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

import zoo
from adversarial_bench.errors import UserError
from adversarial_bench.hashing import seed_of
from attacks.core import radius
from attacks.models import logits_of
from bench.audit import verdicts
from bench.audit.checks import Check, Colour, facts_of, judge, randomised, remedy, worst
from bench.audit.probes import Probed, probe
from bench.audit.subject import STEPS, Evidence, Subject
from bench.executors import HERE, Executor
from bench.plan import check_samples, settle, slice_ids
from bench.render.table import Table
from bench.runner import averaged, load_data, load_model
from bench.session import Progress, perform
from zoo import PLAIN, Build
from zoo.datasets import here
from zoo.registry import PREFIX, fingerprint
from zoo.transforms import split

QUIET = Progress()
SAMPLES = 500


class AuditError(UserError):
    """A model that cannot be audited."""


@dataclass(frozen=True)
class Round:
    """The checks of one way to attack the model."""

    subject: Subject
    checks: list[Check]

    @property
    def colour(self) -> Colour:
        return worst(self.checks)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "subject": self.subject.as_dict(),
            "verdict": self.colour,
            "checks": [check.as_dict() for check in self.checks],
        }


@dataclass(frozen=True)
class Audit:
    """The verdict on a model's gradient at one radius: as it is, then with each remedy applied."""

    model: str
    fingerprint: str
    dataset: str
    norm: str
    eps: float
    samples: int
    seed: int
    command: str = ""
    """That asked for it."""
    rounds: list[Round] = field(default_factory=list)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Audit:
        """The audit that a stored document records. Raises KeyError or TypeError for what is none."""
        rounds = [
            Round(Subject(**found["subject"]), [Check(**check) for check in found["checks"]])
            for found in document["rounds"]
        ]
        names = (each.name for each in fields(cls) if each.name != "rounds")
        return cls(**{name: document[name] for name in names}, rounds=rounds)

    @property
    def verdict(self) -> str:
        """`green`, or `red; green with loss=dlr`: the model as it is, then with what mended it."""
        first, last = self.rounds[0], self.rounds[-1]
        if first is last:
            return first.colour
        return f"{first.colour}; {last.colour} with {last.subject}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: schema 1."""
        return {
            "schema": 1,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "dataset": self.dataset,
            "norm": self.norm,
            "eps": self.eps,
            "samples": self.samples,
            "command": self.command,
            "seed": self.seed,
            "verdict": self.verdict,
            "rounds": [found.as_dict() for found in self.rounds],
        }


def audit(
    model: str,
    results: Path,
    *,
    command: str = "",
    eps: float | None = None,
    samples: int | None = None,
    loss: str = "ce",
    surrogate: str = "own",
    eot: int | None = None,
    dataset: str | None = None,
    build: Build = PLAIN,
    source: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    batch_size: int = 128,
    executor: Executor = HERE,
    progress: Progress = QUIET,
) -> Audit:
    """Audits a model's gradient in the Linf ball, and where it misleads, again with the remedy.

    Everything is stored under `results/audits`: the attacks as runs of their own, the verdict as JSON.
    `samples` is 500 by default, or all where there are fewer. `source` is the network whose images are shown
    to the model; none is where it has weights of its own, or the zoo no other that was trained on the
    dataset. The first round attacks through a model's transforms, unless `build` says not to; `eot` is the
    number of draws, by default a run's. Raises UserError for what cannot be meant, and AuditError for a model
    that has none of the samples right.
    """
    described, build = settle([model], dataset, build)
    samples = min(SAMPLES, here(described)) if samples is None else samples
    check_samples(described, samples)
    eps = described.eps["linf"] if eps is None else eps
    source = source or zoo.card(model).peer or _like(model, described.name)
    net = load_model(model, build, device)
    found = Audit(model, fingerprint(net), described.name, "linf", eps, samples, seed, command)
    rest = {"seed": seed, "device": device, "batch_size": batch_size}
    store = results / "audits"
    current: Subject | None = Subject.of(model, loss, surrogate, eot, build.adaptive)
    while current is not None:
        build = replace(build, adaptive=current.bpda is not False)
        evidence = Evidence(current, eps, described.classes)
        probed = _probe(model, build, device, current, eps, found, batch_size)
        light = randomised(probed, current, samples)
        if light.colour == "red":
            # Without averaging there is no figure to audit: say so, and average.
            checks = [light]
        else:
            asked = evidence.spec(model, described.name, samples, **vars(build), **rest)
            run = perform(asked, store, executor, progress)
            shown = None
            if build.weights is None and source is not None:
                asked = evidence.transfer(model, source, described.name, samples, **vars(build), **rest)
                shown = perform(asked, store, executor, progress).transfer_rows
            checks = judge(facts_of(evidence, probed, run.attack_rows, shown, STEPS))
        found.rounds.append(Round(current, checks))
        current = remedy(evidence, checks, probed)
    verdicts.write(found.as_dict(), results)
    return found


def _like(model: str, dataset: str) -> str | None:
    """Another trained model of the zoo for the same images, best the one behind the model's transforms."""
    known = dict.fromkeys((split(model)[0], *zoo.names(trained=True)))
    return next((n for n in known if n != model and zoo.card(n).dataset == dataset), None)


def _probe(
    name: str,
    build: Build,
    device: str,
    subject: Subject,
    eps: float,
    found: Audit,
    batch_size: int,
) -> Probed:
    images, labels = load_data(found.dataset)
    ids = slice_ids(found.dataset, len(images), found.samples)
    chosen = torch.tensor(ids)
    x, y = images[chosen].to(device), labels[chosen].to(device)
    net = averaged(name, build, device, subject.eot)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(found.seed, "audit", name))
        right = logits_of(net, x, batch_size).argmax(1) == y
        if not right.any():
            raise AuditError(f"the model {name} has none of {len(x)} images right: there is nothing to audit")
        seeds = [seed_of(found.seed, "audit", i) for i, kept in zip(ids, right.tolist()) if kept]
        return probe(net, x[right], y[right], seeds, subject, eps, batch_size)


def tables(found: Audit) -> list[Table]:
    """A traffic-light table per round: the model as it is, then with each remedy."""
    made = []
    for each in found.rounds:
        lines = tuple(
            (
                check.colour,
                check.name,
                check.statistic,
                check.threshold,
                "" if check.p is None else f"{check.p:.2g}",
                str(check.n),
                check.advice if check.colour != "green" else "",
            )
            for check in each.checks
        )
        title = f"{found.model} · {found.norm}({radius(found.eps)}) · {each.subject}: {each.colour}"
        columns = ("light", "check", "found", "threshold", "p", "n", "what to do")
        left = frozenset({"light", "check", "found", "threshold", "what to do"})
        table = Table(title, columns, lines, "", left, minor=("threshold", "p"))
        made.append(table if any(line[-1] for line in lines) else table.without("what to do"))
    return made


HONEST = ("mnist_cnn", "mnist_cnn_bn", "mnist_relu", "mnist_cnn@pgd_at")
"""Networks with an exact gradient and nothing done to it: the audit must let them pass."""


def suite() -> tuple[str, ...]:
    """The planted networks, then the honest ones."""
    from zoo.planted import PLANTED

    return (*(f"{PREFIX}{name}" for name in PLANTED), *HONEST)


def confusion(found: list[Audit]) -> dict[str, int]:
    """How many planted networks were caught (red as they are), how many honest ones were accused."""
    counts = dict.fromkeys(("caught", "missed", "passed", "accused"), 0)
    for each in found:
        red = each.rounds[0].colour == "red"
        if each.model.startswith(PREFIX):
            counts["caught" if red else "missed"] += 1
        else:
            counts["accused" if red else "passed"] += 1
    return counts


def confusion_table(found: list[Audit]) -> Table:
    """The confusion matrix over the planted suite, and the verdict on each network."""
    counts = confusion(found)
    lines = (
        ("planted", str(counts["caught"]), str(counts["missed"])),
        ("honest", str(counts["accused"]), str(counts["passed"])),
    )
    verdicts = "; ".join(f"{each.model}: {each.verdict}" for each in found)
    return Table("confusion matrix", ("networks", "called red", "not red"), lines, verdicts)
