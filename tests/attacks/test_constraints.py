"""Projections by property: feasible, idempotent; ink exactly so, in float32."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from attacks.constraints import L1, L2, BinaryInk, Box, Constraint, Ink, Linf
from attacks.core import ParameterError
from bench.judge import TOLERANCE, violation

LEVELS = torch.arange(256, dtype=torch.float32) / 255


def pair(seed: int, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Originals on the 8-bit grid, and points anywhere around them."""
    generator = torch.Generator().manual_seed(seed)
    x0 = LEVELS[torch.randint(0, 256, (6, 1, 5, 5), generator=generator)]
    return x0 + spread * torch.randn(x0.shape, generator=generator), x0


CASES = [
    Box(),
    Linf(0.1) & Box(),
    L2(0.7) & Box(),
    L1(3.0) & Box(),
    Ink() & Box(),
    Ink() & Linf(0.2) & Box(),
    L2(0.5) & Ink() & Box(),
    BinaryInk() & Box(),
    BinaryInk(0.75) & Box(),
]


@pytest.mark.parametrize("constraint", CASES, ids=repr)
@given(seed=st.integers(0, 2**31), spread=st.floats(0, 3))
@settings(max_examples=40, deadline=None)
def test_projections_are_feasible_and_idempotent(constraint: Constraint, seed: int, spread: float) -> None:
    x, x0 = pair(seed, spread)
    once = constraint.project(x, x0)
    assert (constraint.violation(once, x0) <= 1e-6).all()
    torch.testing.assert_close(constraint.project(once, x0), once, atol=1e-6, rtol=0)
    inside = constraint.project(x0, x0)
    assert torch.equal(inside, x0), "the original is feasible"


@pytest.mark.parametrize(
    "ball", [Linf(0.03), L2(0.5), L2(3.0), L2(20.0), L1(40.0), L1(500.0)], ids=lambda ball: repr(ball)
)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 224, 224)])
def test_the_judge_calls_projections_feasible_whatever_the_size(
    ball: Constraint, shape: tuple[int, int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    # Far from the box, which would take some of the length away.
    x0 = 0.45 + 0.1 * torch.rand((4, *shape), generator=generator)
    x = (ball & Box()).project(x0 + 3 * torch.randn(x0.shape, generator=generator), x0)
    assert (violation(x, x0, ball.threat) <= TOLERANCE).all()


@pytest.mark.parametrize("constraint", [c for c in CASES if "Ink" in repr(c)], ids=repr)
@given(seed=st.integers(0, 2**31), spread=st.floats(0, 3))
@settings(max_examples=40, deadline=None)
def test_ink_is_never_erased(constraint: Constraint, seed: int, spread: float) -> None:
    x, x0 = pair(seed, spread)
    assert (constraint.project(x, x0) >= x0).all()


@given(seed=st.integers(0, 2**31), spread=st.floats(0, 3), amount=st.sampled_from([0.5, 0.625, 0.75, 1.0]))
@settings(max_examples=60, deadline=None)
def test_binary_ink_has_exactly_two_values(seed: int, spread: float, amount: float) -> None:
    x, x0 = pair(seed, spread)
    inked = (BinaryInk(amount) & Box()).project(x, x0)
    assert set((inked - x0).unique().tolist()) <= {0.0, amount}


def test_every_pixel_with_room_takes_binary_ink() -> None:
    x0 = LEVELS.view(1, 1, 16, 16)
    inked = (BinaryInk(0.625) & Box()).project(torch.ones_like(x0), x0)
    room = x0 + 0.625 <= 1
    assert (inked[room] > x0[room]).all()
    assert torch.equal(inked[~room], x0[~room])


@pytest.mark.parametrize(
    "join",
    [
        lambda: Box() & Linf(0.1),
        lambda: Box() & Box() & Box(),
        lambda: BinaryInk() & Linf(0.1),
        lambda: BinaryInk() & Linf(0.1) & Box(),
        lambda: L2(0.1) & BinaryInk(),
    ],
)
def test_joins_that_are_not_feasible_are_refused(join: object) -> None:
    with pytest.raises(ParameterError):
        join()  # type: ignore[operator]


@pytest.mark.parametrize("ball", [Linf(0.3), L2(0.8)], ids=repr)
def test_random_starts_fill_the_ball(ball: Constraint) -> None:
    x0 = torch.full((400, 1, 3, 3), 0.5)
    start = ball.sample(x0, list(range(400)))
    assert (ball.violation(start, x0) <= 1e-6).all()
    delta = (start - x0).flatten(1)
    reach = delta.abs().amax(1) if isinstance(ball, Linf) else delta.norm(dim=1)
    assert float(reach.max()) > 0.99 * ball.eps  # type: ignore[attr-defined]
    assert float(delta.mean().abs()) < 0.03
    # A point uniform in a ball of dimension 9 lies beyond 0.9 eps with probability 1 - 0.9^9 = 0.61.
    assert abs(float((reach > 0.9 * ball.eps).float().mean()) - 0.613) < 0.1  # type: ignore[attr-defined]


@given(seed=st.integers(0, 2**31), spread=st.floats(0.01, 3), eps=st.floats(0.1, 8))
@settings(max_examples=60, deadline=None)
def test_the_l1_projection_is_the_nearest_point_of_ball_and_box(seed: int, spread: float, eps: float) -> None:
    x, x0 = pair(seed, spread)
    nearest = L1(eps).project(x, x0)
    reach = (x - nearest).flatten(1).norm(dim=1)
    other, _ = pair(seed + 1, spread)
    for t in (1.0, 0.1, 0.01):
        # On the way to any other feasible point, no point is nearer.
        near = nearest + t * (L1(eps).project(other, x0) - nearest)
        assert ((x - near).flatten(1).norm(dim=1) >= reach - 1e-5).all()
    clipped = x.clamp(0, 1)
    spent = (nearest - x0).abs().flatten(1).sum(1)
    beyond = (clipped - x0).abs().flatten(1).sum(1) > eps
    assert torch.allclose(spent[beyond], torch.tensor(eps), atol=1e-4), "the whole budget is used"


def test_the_violation_is_the_distance_beyond() -> None:
    x0 = torch.full((1, 1, 2, 2), 0.5)
    x = x0.clone()
    x[0, 0, 0, 0] = 0.8
    assert Linf(0.1).violation(x, x0).item() == pytest.approx(0.2)
    assert L2(0.1).violation(x, x0).item() == pytest.approx(0.2)
    assert L1(0.1).violation(x, x0).item() == pytest.approx(0.2)
    assert Ink().violation(x0, x).item() == pytest.approx(0.3)
    assert Box().violation(x + 0.4, x0).item() == pytest.approx(0.2)
    assert BinaryInk(0.625).violation(x, x0).item() == pytest.approx(0.3)
