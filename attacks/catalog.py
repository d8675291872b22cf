"""Every native attack, one expression each; what it leaves out is `Attack`'s default."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from attacks.constraints import L1, L2, BinaryInk, Box, Constraint, Ink, Linf
from attacks.inits import GreyNoise, Image, Stripes, Tiles, Zeros
from attacks.native import Attack
from attacks.objectives import DLR, MSE, CrossEntropy, Feature, Logit, Margin, OneHotError, SquaredNorm
from attacks.searches import Corners, Patches, PatchesL1, RayS, Square
from attacks.stops import Confident, Never
from attacks.suite import Suite
from attacks.updates import APGD, APGDL1, APGDL2, Adam, Normalized, OverStd, Sign, Update

_one_step: dict[str, Any] = {"steps": 1, "stop": Never(), "keep": "last"}
"""The step is taken whatever the model made of the image before it."""
_pgd = Attack(
    "pgd",
    "projected gradient descent on cross-entropy in the Linf ball, from a random start",
    CrossEntropy(),
    Linf() & Box(),
    Sign(),
    "Madry et al. 2018, arXiv:1706.06083",
    init=Image(random_start=True),
)
_apgd = Attack(
    "apgd_ce",
    "APGD on cross-entropy in the Linf ball: its step halves where progress stops",
    CrossEntropy(),
    Linf() & Box(),
    APGD(),
    "Croce & Hein 2020, arXiv:2003.01690",
    init=Image(random_start=True),
    steps=100,
)
_apgd_dlr = replace(_apgd, short="apgd_dlr", summary="APGD on the DLR loss in the Linf ball", objective=DLR())
_square = Attack(
    "square",
    "random squares of +eps or -eps, kept where the margin falls: asks for scores, not for gradients",
    Margin(),
    Linf() & Box(),
    Square(),
    "Andriushchenko et al. 2020, arXiv:1912.00049",
    init=Stripes(),
    steps=1000,
    tags=frozenset({"score"}),
)
_rays = Attack(
    "rays",
    "turns the signs of blocks of a direction, keeps what brings the border nearer: asks for labels alone",
    Margin(),
    Linf() & Box(),
    RayS(),
    "Chen & Gu 2020, arXiv:2006.12792",
    steps=3000,
    roams=True,
    tags=frozenset({"decision", "slow"}),
)
_ink = Attack(
    "ink",
    "adds ink, never erases, until a wrong class has probability 0.9",
    CrossEntropy(),
    Ink() & Box(),
    Sign(step_size=0.02),
    "HW2 §3.1",
    stop=Confident(),
    steps=100,
    presets={"hw2": {"step_size": 1 / 255, "steps": 500}},
)

_NORMS: dict[str, tuple[Constraint, Update, Update]] = {
    "l2": (L2() & Box(), APGDL2(), Patches()),
    "l1": (L1() & Box(), APGDL1(), PatchesL1()),
}
"""The ball, its APGD and its search by score."""


def _in(norm: str, attack: Attack) -> Attack:
    """An APGD of the Linf ball in another norm's."""
    ball, update, _ = _NORMS[norm]
    summary = attack.summary.replace("Linf", norm.upper())
    return replace(attack, short=f"{attack.short}_{norm}", summary=summary, constraint=ball, update=update)


def _square_in(norm: str) -> Attack:
    summary = "bumps moved about the perturbation, kept where the margin falls: asks for scores alone"
    ball, _, update = _NORMS[norm]
    parts: dict[str, Any] = {"constraint": ball, "update": update, "init": Tiles()}
    return replace(_square, short=f"square_{norm}", summary=summary, **parts)


_SEARCHING = (
    (100, -0.92),
    (140, -0.89),
    (190, -0.78),
    (270, -0.71),
    (380, -0.62),
    (540, -0.55),
    (770, -0.44),
    (1080, -0.32),
    (1540, -0.2),
    (2160, -0.12),
)
"""(queries, closeness): by some 0.1 below the farthest of those that fell later (benchmarks/README.md)."""


def _standard(short: str, ce: Attack, dlr: Attack, search: Attack) -> Suite:
    """AutoAttack's parts, each on what still stands.

    APGD on cross-entropy, a search that sees no gradient, then APGD on DLR towards each class; a network of
    steps also by the surrogates that tests found best. In the Linf ball a sample that neither gradient nor
    search brings near its goal is given up: the closeness asked for is below what any sample showed that
    fell later (benchmarks/README.md). In others that was not measured, and in a network of steps no
    closeness is too far. In that ball, and only where `decision=true` asks for it, RayS has its turn: labels
    are the last thing that a model can hide.
    """
    surrogates = ("own", "tanh", "poly")
    if ce.norm == "linf":
        ce = replace(ce, patience=((20, -0.95), (40, -0.9)))
        search = replace(search, steps=3000, patience=_SEARCHING)
        dlr = replace(dlr, patience=((0, -0.36), (20, -0.55), (40, -0.45)))
    return Suite(
        short,
        f"APGD on cross-entropy, a search by score, then APGD on targeted DLR, in the {ce.norm.title()} ball",
        (
            *(replace(ce, surrogate=surrogate) for surrogate in surrogates),
            search,
            *(replace(dlr, surrogate=surrogate) for surrogate in surrogates[1:]),
            *(replace(dlr, aim=aim) for aim in range(1, 10)),
            *((_rays,) if ce.norm == "linf" else ()),
        ),
        "Croce & Hein 2020, arXiv:2003.01690, without FAB",
        frozenset({"gradient", "score", "slow"}),
    )


ATTACKS: tuple[Attack | Suite, ...] = (
    _standard("standard", _apgd, _apgd_dlr, _square),
    _standard("standard_l2", _in("l2", _apgd), _in("l2", _apgd_dlr), _square_in("l2")),
    _standard("standard_l1", _in("l1", _apgd), _in("l1", _apgd_dlr), _square_in("l1")),
    replace(
        _pgd,
        short="fgsm",
        summary="one full step along the gradient's sign",
        source="Goodfellow et al. 2015, arXiv:1412.6572",
        init=Image(),
        **_one_step,
    ),
    _pgd,
    replace(
        _pgd,
        short="pgd_l2",
        summary="projected gradient descent on cross-entropy in the L2 ball, from a random start",
        constraint=L2() & Box(),
        update=Normalized(),
    ),
    _apgd,
    _apgd_dlr,
    *(_in(norm, attack) for norm in _NORMS for attack in (_apgd, _apgd_dlr)),
    _square,
    *map(_square_in, _NORMS),
    _rays,
    Attack(
        "corners",
        "random corners of the Linf ball: noise that knows nothing of the model",
        Margin(),
        Linf() & Box(),
        Corners(),
        "Carlini et al. 2019, §5 (arXiv:1902.06705): what a gradient attack must beat",
        steps=10,
        tags=frozenset({"noise", "score"}),
    ),
    Attack(
        "fgsm_mse",
        "one step along the sign of the gradient of the softmax's squared error",
        OneHotError(),
        Linf() & Box(),
        Sign(),
        "Midterm",
        **_one_step,
        presets={"midterm": {"eps": 0.1}, "midterm-default": {"eps": 2 / 255}},
    ),
    _ink,
    replace(
        _ink,
        short="ink_target",
        summary="adds ink, never erases, until the target class has probability 0.9",
        source="HW2 §3.2",
        goals=("targeted",),
    ),
    replace(
        _ink,
        short="ink_binary",
        summary="adds nothing or one fixed amount of ink to each pixel, through Sign",
        # Where a network is sure, cross-entropy's gradient is far below what OverStd adds to its divisor.
        objective=Margin(),
        constraint=BinaryInk() & Box(),
        update=OverStd(step_size=0.02),
        source="HW2 §3.3",
        presets={"hw2": {"step_size": 0.005, "steps": 500}},
    ),
    Attack(
        "mse_target",
        "the target class's logit, less the distance to the original: called one digit, looks another",
        Logit() - MSE(beta=1e-4 * 255**2),
        Box(),
        Adam(step_size=0.02),
        "PA2 §3b",
        stop=Confident(),
        steps=200,
        goals=("targeted",),
        presets={"report": {"step_size": 0.05, "steps": 1000, "stop": "never"}},
    ),
    Attack(
        "noise",
        "noise that makes an image the target class, its step over the gradient's std",
        Logit(),
        Box(),
        OverStd(step_size=0.02),
        "PA2 §3c",
        stop=Confident(),
        steps=200,
        goals=("targeted",),
        presets={"report": {"step_size": 0.005, "steps": 1500, "stop": "never"}},
    ),
    Attack(
        "logit_ascent",
        "from grey noise, the target class's logit: an image of a class from nothing",
        Logit(),
        Box(),
        Adam(step_size=0.05),
        "PA2 §3a",
        init=GreyNoise(),
        stop=Confident(confidence=0.99),
        steps=500,
        goals=("generate",),
        presets={"report": {"step_size": 0.05, "steps": 15_000, "stop": "never"}},
    ),
    Attack(
        "image_opt",
        "from black, the class's logit less a squared norm: what the network takes for the class",
        Logit() - SquaredNorm(weight=0.02),
        Box(),
        Adam(step_size=0.05),
        "PA2, optional part 1; Simonyan et al. 2014, arXiv:1312.6034",
        init=Zeros(),
        stop=Never(),
        steps=200,
        keep="last",
        goals=("generate",),
    ),
    Attack(
        "feature_ascent",
        "from grey noise, the activation of a convolution's channel: what the channel likes to see",
        Feature(),
        Box(),
        Adam(step_size=0.05),
        "PA2, optional part 1",
        init=GreyNoise(),
        stop=Never(),
        steps=200,
        keep="last",
        goals=("feature",),
    ),
)
