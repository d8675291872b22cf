"""The checks: each one statistic, its threshold, its n, a colour, where it is from, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bench.audit.subject import MORE, Evidence, Subject
from bench.metrics import holm, mcnemar, rate
from bench.runner import DRAWN

if TYPE_CHECKING:
    import pandas as pd

    from bench.audit.probes import Probed

Colour = Literal["green", "amber", "red"]
SIGNIFICANT = 0.01
ATHALYE = "Athalye et al. 2018, §3.1 (arXiv:1802.00420)"
CARLINI = "Carlini et al. 2019, §5 (arXiv:1902.06705)"
AUTO = "Croce & Hein 2020, AutoAttack's own checks (arXiv:2003.01690)"
PINTOR = "Pintor et al. 2022 (arXiv:2106.09947)"
OURS = "this project's threshold"


@dataclass(frozen=True)
class Check:
    """One line of the audit."""

    name: str
    statistic: str
    threshold: str
    n: int
    colour: Colour
    source: str
    advice: str = ""
    """What to do about a light that is not green."""
    p: float | None = None
    """For a test: the chance of the finding, corrected for the number of tests (Holm)."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Facts:
    """All that the checks look at: the probes, and which samples each attack broke."""

    evidence: Evidence
    probed: Probed
    n: int
    broke: dict[str, np.ndarray]
    """By attack, (n,) bool over the samples that were right; an attack that crashed broke none."""
    transfer: np.ndarray | None
    """(n,) bool: broken by an image made on the other network."""
    left_early: np.ndarray
    """(n,) bool: PGD met its goal on the sample and returned an image."""
    late_gain: np.ndarray
    """(n,) of PGD."""

    def union(self, *attacks: str) -> np.ndarray:
        """(n,) bool: broken by any of them."""
        found = np.zeros(self.n, dtype=bool)
        for attack in attacks:
            found |= self.broke[attack]
        return found


def facts_of(
    evidence: Evidence, probed: Probed, rows: pd.DataFrame, shown: pd.DataFrame | None, steps: int
) -> Facts:
    """The facts in the rows of the audit's runs; samples in the order of their ids."""
    by_attack = {
        attack: group.sort_values("sample_id")
        for attack, group in rows.groupby("attack", sort=False, observed=True)
    }
    any_one = by_attack[evidence.pgd]
    right = (any_one["clean_label"] == any_one["label"]).to_numpy()
    pgd = any_one[right]
    transfer = None
    if shown is not None:
        transfer = shown.sort_values("sample_id")["success"].to_numpy()[right]
    return Facts(
        evidence,
        probed,
        int(right.sum()),
        {attack: group["success"].to_numpy()[right] for attack, group in by_attack.items()},
        transfer,
        ((pgd["status"] == "ok") & (pgd["steps"] < steps)).to_numpy(),
        pgd["late_gain"].to_numpy(),
    )


def share(count: int, n: int) -> str:
    """`12 of 500 (2.4 %)`."""
    return f"{count} of {n} ({100 * count / max(n, 1):.1f} %)"


def _zero(facts: Facts) -> Check:
    probed = facts.probed
    zero, faint = int(probed.zero.sum()), int(probed.faint.sum())
    part = zero / probed.n
    colour: Colour = "red" if part > 0.1 else "amber" if part > 0.01 or faint / probed.n > 0.1 else "green"
    said = share(zero, probed.n) + (f", {faint} more vanish" if faint else "")
    return Check("zero gradients", said, "red > 10 %, amber > 1 %", probed.n, colour, AUTO)


def _useless(facts: Facts) -> Check:
    count, n = int(facts.probed.rises.sum()), facts.probed.n
    colour: Colour = "red" if rate(count, n).low < 0.75 else "green"
    return Check("useless gradients", share(count, n) + " rise", "red: low end < 75 %", n, colour, OURS)


def _differences(facts: Facts) -> Check | None:
    if facts.probed.steps:
        return None  # A step has no derivative to agree with: whether its surrogate helps, the others tell.
    count, n = int(facts.probed.agrees.sum()), facts.probed.n
    agrees, said = rate(count, n), share(count, n) + " agree"
    # A network that is very sure loses part of the cross-entropy's gradient to rounding, and what is left
    # still leads uphill: an accusation needs more than an interval that reaches below the threshold.
    colour: Colour = "red" if agrees.high < 0.75 else "amber" if agrees.low < 0.75 else "green"
    return Check("finite differences", said, "red: high end < 75 %, amber: low", n, colour, OURS)


def _paired(name: str, source: str, weak: np.ndarray, strong: np.ndarray, what: str) -> Check:
    more, fewer = int((weak & ~strong).sum()), int((strong & ~weak).sum())
    said = f"{more} by {what} only, {fewer} the reverse"
    return Check(name, said, "red: p < 0.01", len(weak), "green", source, p=mcnemar(more, fewer))


def _noise(facts: Facts) -> Check:
    broke = facts.broke
    weak, strong = broke[facts.evidence.noise], broke[facts.evidence.fgsm]
    return _paired("noise beats gradient", CARLINI, weak, strong, "noise")


def _one_step(facts: Facts) -> Check:
    broke = facts.broke
    weak, strong = broke[facts.evidence.fgsm], broke[facts.evidence.pgd]
    return _paired("one step beats many", ATHALYE, weak, strong, "FGSM")


def _monotone(facts: Facts) -> Check:
    """Of neighbouring radii, the pair that speaks most against a rise."""
    rising = [facts.broke[attack] for attack in facts.evidence.grid]
    found = [
        _paired("eps monotone", CARLINI, small, large, "a smaller eps")
        for small, large in zip(rising, rising[1:])
    ]
    least = min(found, key=lambda check: check.p or 0.0)
    return replace(least, p=min(1.0, len(found) * (least.p or 0.0)))


def _beyond(name: str, source: str, other: np.ndarray, white: np.ndarray, advice: str) -> Check:
    count, n = int((other & ~white).sum()), len(white)
    estimate = rate(count, n)
    colour: Colour = "red" if estimate.value > 0.01 and estimate.low > 0.002 else "green"
    said = f"{share(count, n)} only so"
    return Check(name, said, "red > 1 %, low end > 0.2 %", n, colour, source, advice)


def _black_box(facts: Facts) -> Check:
    white = facts.union(*facts.evidence.white_box)
    advice = "believe the black box's figure; give it more queries: --attack square --param steps=5000"
    return _beyond("black box beats white box", AUTO, facts.broke[facts.evidence.square], white, advice)


def _transfer(facts: Facts) -> Check | None:
    if facts.transfer is None:
        return None
    white = facts.union(*facts.evidence.white_box)
    advice = "believe the transferred images: bench transfer"
    return _beyond("transfer beats white box", ATHALYE, facts.transfer, white, advice)


def _unlimited(facts: Facts) -> Check:
    broken = int(facts.broke[facts.evidence.unlimited].sum())
    part = broken / facts.n
    said = share(broken, facts.n)
    return Check("unlimited eps", said, "red < 99 %", facts.n, "red" if part < 0.99 else "green", ATHALYE)


def _converged(facts: Facts) -> Check:
    base = facts.broke[facts.evidence.pgd]
    further = [int((facts.broke[a] & ~base).sum()) for a in (facts.evidence.longer, facts.evidence.restarted)]
    said = f"{further[0]} more by steps × {MORE}, {further[1]} by restarts × {MORE}"
    colour: Colour = "amber" if max(further) / facts.n > 0.02 else "green"
    advice = f"--param steps=200 --restarts {MORE}, or --attack standard"
    return Check("converged", said, "amber > 2 %", facts.n, colour, CARLINI, advice)


def _silent(facts: Facts) -> Check:
    silent = int((facts.left_early & ~facts.broke[facts.evidence.pgd]).sum())
    advice = "the attack called these broken and the judge does not: a defect of the attack, or a draw"
    said = share(silent, facts.n)
    return Check("silent success", said, "red > 0", facts.n, "red" if silent else "green", PINTOR, advice)


def _incomplete(facts: Facts) -> Check:
    count = int((facts.late_gain > 0.05).sum())
    colour: Colour = "amber" if count / facts.n > 0.1 else "green"
    said = f"{share(count, facts.n)} still rise"
    advice = "more steps: --param steps=200"
    return Check("incomplete optimisation", said, "amber > 10 %", facts.n, colour, PINTOR, advice)


def _saturated(facts: Facts) -> Check:
    base = facts.broke[facts.evidence.pgd]
    own = facts.evidence.subject.loss
    named = zip(facts.evidence.other_losses, facts.evidence.losses)
    others = facts.union(*(attack for attack, loss in named if loss != own))
    count, zero = int((others & ~base).sum()), int(facts.probed.saturated.sum())
    reverse = int((base & ~others).sum())
    # Two losses of equal strength each break some that the other does not: what counts is the difference.
    red = count / facts.n > 0.02 and mcnemar(count, reverse) < SIGNIFICANT
    said = f"{count} by another loss only, {reverse} the reverse; {zero} exactly 0"
    advice = f"another loss: --param loss={facts.evidence.losses[-1]}, or --attack standard"
    return Check(
        "saturated loss", said, "red > 2 %, p < 0.01", facts.n, "red" if red else "green", AUTO, advice
    )


def randomised(probed: Probed, subject: Subject, n: int) -> Check:
    """Whether passes differ, and nothing averages over them; n samples."""
    drawn = probed.spread > DRAWN
    colour: Colour = "red" if drawn and subject.eot == 1 else "green"
    said = f"{probed.spread:.1e} between passes"
    if drawn and colour == "green":
        said += f", mean of {subject.eot} draws"
    advice = "average over draws: --eot 20"
    return Check("randomised outputs", said, "red > 1e-4 without EoT", n, colour, AUTO, advice)


def _randomised(facts: Facts) -> Check:
    return randomised(facts.probed, facts.evidence.subject, facts.n)


def _probabilities(facts: Facts) -> Check:
    found = facts.probed.probabilities
    blind = found and facts.evidence.subject.loss == "ce"
    colour: Colour = "red" if blind else "amber" if found else "green"
    said = "rows in [0, 1] that sum to 1" if found else "no"
    advice = "return logits; until then a loss that knows no scale: --param loss=dlr"
    return Check("probabilities for logits", said, "red: any", facts.n, colour, AUTO, advice)


CHECKS: tuple[Callable[[Facts], Check | None], ...] = (
    _zero,
    _useless,
    _differences,
    _noise,
    _one_step,
    _black_box,
    _transfer,
    _unlimited,
    _monotone,
    _converged,
    _silent,
    _incomplete,
    _saturated,
    _randomised,
    _probabilities,
)


def judge(facts: Facts) -> list[Check]:
    """Every check that applies; the tests among them corrected for their number."""
    found = [check for check in (make(facts) for make in CHECKS) if check is not None]
    tests = [i for i, check in enumerate(found) if check.p is not None]
    for i, p in zip(tests, holm([found[i].p or 0.0 for i in tests])):
        found[i] = replace(found[i], p=p, colour="red" if p < SIGNIFICANT else "green")
    cure = remedy(facts.evidence, found, facts.probed)
    advice = f"the gradient misleads: attack with {cure}" if cure else "believe no gradient attack here"
    if cure and cure.bpda and not facts.evidence.subject.bpda:
        advice += ", which leaving out --no-adaptive does"
    if all(check.colour != "red" for check in found):
        advice = "no alarm; --attack standard does not rest on this alone"
    return [
        replace(check, advice=advice) if check.colour != "green" and not check.advice else check
        for check in found
    ]


def remedy(evidence: Evidence, checks: list[Check], probed: Probed) -> Subject | None:
    """How the model must be attacked for its red lights to go out; None where there is no more to try.

    One change at a time: draws are averaged over first, since all else is noise without; transforms are
    passed straight through; a step gets a surrogate; and then the loss is changed for one that no scale
    blinds.
    """
    subject = evidence.subject
    red = {check.name for check in checks if check.colour == "red"}
    if not red:
        return None
    if "randomised outputs" in red:
        return replace(subject, eot=20)
    if subject.bpda is False:
        return replace(subject, bpda=True)
    if probed.steps and subject.surrogate == "own":
        return replace(subject, surrogate="tanh")
    return replace(subject, loss=evidence.losses[-1]) if subject.loss == "ce" else None


def worst(checks: list[Check]) -> Colour:
    """The colour of the whole: that of the worst light."""
    colours = {check.colour for check in checks}
    return "red" if "red" in colours else "amber" if "amber" in colours else "green"
