"""Every native attack, one expression each; what it leaves out is `Attack`'s default."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from attacks.constraints import L2, BinaryInk, Box, Ink, Linf
from attacks.inits import GreyNoise, Image, Zeros
from attacks.native import Attack
from attacks.objectives import MSE, CrossEntropy, Feature, Logit, OneHotError, SquaredNorm
from attacks.stops import Confident, Never
from attacks.updates import Adam, Normalized, OverStd, Sign

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

ATTACKS: tuple[Attack, ...] = (
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
