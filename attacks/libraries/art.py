"""ART's attacks (Nicolae et al. 2018, arXiv:1807.01069).

Left out, and why (ART 1.20.1):

- FastGradientMethod, ProjectedGradientDescent, MomentumIterativeMethod in L1: each step moves the one
  pixel of largest gradient, and stays on it when it has reached the box.
- AutoConjugateGradient, RescalingAutoConjugateGradient: 0-1 % where AutoProjectedGradientDescent has 96 %.
- CarliniL0Method: changes every pixel.
- GeoDA: calls np.mat, which numpy 2 has not. AutoAttack: imports `multiprocess`, which ART does not declare.
- BrendelBethge: needs numba.
- Wasserstein: no success in minutes, or an overflow in its Sinkhorn iterations.
- TargetedUniversalPerturbation: no success. ThresholdAttack: a budget in whole grey levels, and a
  differential evolution over every pixel.
- Targeted CarliniLInfMethod, and AutoProjectedGradientDescent with the DLR loss (ART descends the
  untargeted formula): seldom reach their target.
- Targeted BoundaryAttack, HopSkipJump and SignOPTAttack: need an image of each target class to start from.
- LowProFool (tables), DecisionTreeAttack, HighConfidenceLowUncertainty (other models), FrameSaliencyAttack
  (video), AdversarialPatch and its kin (return a patch), FeatureAdversaries (want a guide image),
  CompositeAdversarialAttack, LaserAttack, GRAPHITE (other inputs or packages): no attack on a classifier's
  image in one of our threat models.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attacks.core import Norm
from attacks.libraries.adapter import BOTH, TARGETED, UNTARGETED, LibraryAttack

if TYPE_CHECKING:
    from torch import Tensor

    from attacks.core import Goal
    from attacks.models import Counted

_row = partial(LibraryAttack, "art")
_STEPS = {"steps": "max_iter"}
_ITERATED = {**_STEPS, "step_size": "eps_step", "random_start": "num_random_init"}
_FGSM = "Goodfellow et al. 2015, arXiv:1412.6572"
_BIM = "Kurakin et al. 2017, arXiv:1607.02533"
_PGD = "Madry et al. 2018, arXiv:1706.06083"
_MIFGSM = "Dong et al. 2018, arXiv:1710.06081"
_APGD = "Croce & Hein 2020, arXiv:2003.01690"
_CW = "Carlini & Wagner 2017, arXiv:1608.04644"

_MINIMAL = frozenset({"gradient", "minimal"})
_SLOW = _MINIMAL | {"slow"}
_SCORE = frozenset({"score", "slow"})
_DECISION = frozenset({"decision", "minimal", "slow", "unseeded"})

_quiet = {"verbose": False}
_projected = {"decay": None, "random_eps": False, **_quiet}
_few = {"steps": 10, "step_size": None}
_norms: tuple[tuple[Norm, str, str | int], ...] = (("linf", "", "inf"), ("l2", "_l2", 2), ("l1", "_l1", 1))

ATTACKS: tuple[LibraryAttack, ...] = (
    *(
        _row(
            f"fgsm{suffix}",
            "FastGradientMethod",
            norm,
            _FGSM,
            {"random_start": False},
            _ITERATED,
            {"norm": order, "minimal": False},
        )
        for norm, suffix, order in _norms[:2]
    ),
    _row("bim", "BasicIterativeMethod", "linf", _BIM, _few, _ITERATED, _quiet),
    *(
        _row(
            f"pgd{suffix}",
            "ProjectedGradientDescent",
            norm,
            _PGD,
            {"steps": 40, "step_size": None, "random_start": True},
            _ITERATED,
            {"norm": order, **_projected},
        )
        for norm, suffix, order in _norms[:2]
    ),
    *(
        _row(
            f"mifgsm{suffix}",
            "MomentumIterativeMethod",
            norm,
            _MIFGSM,
            {**_few, "momentum": 1.0},
            {**_ITERATED, "momentum": "decay"},
            {"norm": order, **_quiet},
        )
        for norm, suffix, order in _norms[:2]
    ),
    *(
        _row(
            f"apgd_{short}{suffix}",
            "AutoProjectedGradientDescent",
            norm,
            _APGD,
            {"steps": 20, "step_size": None},
            _ITERATED,
            {"norm": order, "loss_type": loss, "nb_random_init": 1, **_quiet},
            goals=goals,
        )
        for short, loss, goals in (
            ("ce", "cross_entropy", BOTH),
            ("dlr", "difference_logits_ratio", UNTARGETED),
        )
        for norm, suffix, order in _norms
    ),
    _row(
        "cw_l2",
        "CarliniL2Method",
        "l2",
        _CW,
        {
            "steps": 10,
            "step_size": 0.1,
            "binary_search_steps": 4,
            "initial_const": 10.0,
            "confidence": 0.0,
            "max_halving": 5,
            "max_doubling": 5,
        },
        {"steps": "max_iter", "step_size": "learning_rate"},
        _quiet,
        tags=_SLOW,
    ),
    _row(
        "cw_linf",
        "CarliniLInfMethod",
        "linf",
        _CW,
        {
            "steps": 10,
            "step_size": 0.3,
            "decrease_factor": 0.9,
            "initial_const": 1.0,
            "largest_const": 20.0,
            "const_factor": 4.0,
            "confidence": 0.0,
        },
        {"steps": "max_iter", "step_size": "learning_rate"},
        _quiet,
        goals=UNTARGETED,
        tags=_SLOW,
    ),
    _row(
        "ead",
        "ElasticNet",
        "l1",
        "Chen et al. 2018, arXiv:1709.04114",
        {
            "steps": 20,
            "step_size": 0.03,
            "binary_search_steps": 2,
            "initial_const": 10.0,
            "confidence": 0.0,
            "regularization": 0.01,
            "decision_rule": "L1",
        },
        {"steps": "max_iter", "step_size": "learning_rate", "regularization": "beta"},
        _quiet,
        tags=_SLOW,
    ),
    _row(
        "deepfool_l2",
        "DeepFool",
        "l2",
        "Moosavi-Dezfooli et al. 2016, arXiv:1511.04599",
        {"steps": 10, "candidates": 10, "overshoot": 0.02},
        {"steps": "max_iter", "candidates": "nb_grads", "overshoot": "epsilon"},
        _quiet,
        goals=UNTARGETED,
        tags=_MINIMAL,
    ),
    _row(
        "newtonfool",
        "NewtonFool",
        "l2",
        "Jang et al. 2017, doi:10.1145/3134600.3134635",
        {"steps": 50, "eta": 0.1},
        {"steps": "max_iter"},
        _quiet,
        goals=UNTARGETED,
        tags=_SLOW,
        probabilities=True,
    ),
    _row(
        "jsma",
        "SaliencyMapMethod",
        "l0",
        "Papernot et al. 2016, arXiv:1511.07528",
        {"theta": 1.0, "gamma": 0.1},
        fixed=_quiet,
        goals=TARGETED,
        tags=_SLOW,
    ),
    _row(
        "universal",
        "UniversalPerturbation",
        "linf",
        "Moosavi-Dezfooli et al. 2017, arXiv:1610.08401",
        {"steps": 2, "delta": 0.2},
        _STEPS,
        {"norm": "inf", "attacker": "deepfool", "attacker_params": {"max_iter": 10, **_quiet}, **_quiet},
        goals=UNTARGETED,
        tags=frozenset({"gradient", "slow"}),
    ),
    *(
        _row(
            f"square{suffix}",
            "SquareAttack",
            norm,
            "Andriushchenko et al. 2020, arXiv:1912.00049",
            {"steps": 80, "p_init": 0.8},
            _STEPS,
            {"norm": order, "adv_criterion": None, "loss": None, "nb_restarts": 1, **_quiet},
            goals=UNTARGETED,
            tags=frozenset({"score"}),
        )
        for norm, suffix, order in _norms[:2]
    ),
    *(
        _row(
            f"simba_{kind}",
            "SimBA",
            "l2",
            "Guo et al. 2019, arXiv:1905.07121",
            {"steps": 500, "step_size": 0.2, "freq_dim": 4, "stride": 1},
            {**_STEPS, "step_size": "epsilon"},
            {"attack": kind, "order": "random", **_quiet},
            tags=_SCORE | {"minimal"},
            probabilities=True,
            alone=True,
        )
        for kind in ("px", "dct")
    ),
    _row(
        "vat",
        "VirtualAdversarialMethod",
        "l2",
        "Miyato et al. 2016, arXiv:1507.00677",
        {"steps": 1, "finite_diff": 1e-2},
        _STEPS,
        _quiet,
        goals=UNTARGETED,
        tags=_SCORE,
        probabilities=True,
    ),
    _row(
        "zoo",
        "ZooAttack",
        "l2",
        "Chen et al. 2017, arXiv:1708.03999",
        {
            "steps": 50,
            "step_size": 0.1,
            "binary_search_steps": 1,
            "initial_const": 1.0,
            "confidence": 0.0,
            "nb_parallel": 128,
            "variable_h": 1e-2,
            "abort_early": True,
        },
        {**_STEPS, "step_size": "learning_rate"},
        {"use_resize": False, "use_importance": False, **_quiet},
        tags=_SCORE | {"minimal"},
        alone=True,
    ),
    _row(
        "boundary",
        "BoundaryAttack",
        "l2",
        "Brendel et al. 2018, arXiv:1712.04248",
        {
            "steps": 100,
            "delta": 0.01,
            "epsilon": 0.01,
            "step_adapt": 0.667,
            "num_trial": 25,
            "sample_size": 20,
        },
        _STEPS,
        {"init_size": 100, "min_epsilon": 0.0, **_quiet},
        goals=UNTARGETED,
        tags=_DECISION,
    ),
    *(
        _row(
            f"hopskipjump_{norm}",
            "HopSkipJump",
            norm,
            "Chen et al. 2020, arXiv:1904.02144",
            {"steps": 10, "max_eval": 1000, "init_eval": 100, "init_size": 100},
            _STEPS,
            {"norm": order, **_quiet},
            goals=UNTARGETED,
            tags=_DECISION,
        )
        for norm, _, order in _norms[:2]
    ),
    _row(
        "sign_opt",
        "SignOPTAttack",
        "l2",
        "Cheng et al. 2020, arXiv:1909.10773",
        {
            "steps": 10,
            "epsilon": 0.001,
            "num_trial": 50,
            "query_limit": 4000,
            "k": 100,
            "alpha": 0.2,
            "beta": 0.001,
        },
        _STEPS,
        {"eval_perform": False, **_quiet},
        goals=UNTARGETED,
        tags=frozenset({"decision", "minimal", "slow"}),
    ),
    _row(
        "shadow",
        "ShadowAttack",
        "unrestricted",
        "Ghiasi et al. 2020, arXiv:2003.08937",
        {
            "steps": 50,
            "sigma": 0.1,
            "step_size": 0.1,
            "lambda_tv": 0.3,
            "lambda_c": 1.0,
            "lambda_s": 0.5,
            "samples": 4,
        },
        {"steps": "nb_steps", "step_size": "learning_rate", "samples": "batch_size"},
        _quiet,
        goals=TARGETED,
        tags=frozenset({"gradient", "slow"}),
        alone=True,
    ),
    _row(
        "pixel",
        "PixelAttack",
        "l0",
        "Su et al. 2019, arXiv:1710.08864",
        {"steps": 20},
        {"steps": "max_iter", "eps": "th"},
        {"es": 1, **_quiet},
        tags=_SCORE,
    ),
    _row(
        "spatial",
        "SpatialTransformation",
        "unrestricted",
        "Engstrom et al. 2019, arXiv:1712.02779",
        {"max_translation": 10.0, "num_translations": 3, "max_rotation": 30.0, "num_rotations": 5},
        fixed=_quiet,
        goals=UNTARGETED,
        tags=frozenset({"decision"}),
        # It takes one transformation for a whole batch.
        alone=True,
    ),
)


def call(
    row: LibraryAttack, bridge: Counted, images: Tensor, goal: Goal, arguments: dict[str, Any]
) -> Tensor:
    """Runs one row on one batch."""
    import torch
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier
    from torch import nn

    with torch.no_grad():
        classes = bridge.model(images[:1]).shape[1]
    classifier = PyTorchClassifier(
        nn.Sequential(bridge, nn.Softmax(1)) if row.probabilities else bridge,
        # A sum, for a gradient that does not shrink with the batch.
        nn.CrossEntropyLoss(reduction="sum"),
        tuple(images.shape[1:]),
        classes,
        clip_values=(0.0, 1.0),
        device_type="cpu" if images.device.type == "cpu" else "gpu",
    )
    make = getattr(evasion, row.cls)
    own = {"batch_size": len(images), "targeted": goal.kind == "targeted"}
    arguments = {**{name: value for name, value in own.items() if name in make.attack_params}, **arguments}
    one_hot = nn.functional.one_hot(goal.classes, classes).float()
    found = make(classifier, **arguments).generate(x=images.cpu().numpy(), y=one_hot.cpu().numpy())
    return torch.from_numpy(found)


def load() -> None:
    """Imports ART, which at its first import writes a folder into the user's home: not with us."""
    if "art" in sys.modules:
        return
    home = Path.home() / ".art"
    if not (home / "config.json").exists():
        with tempfile.TemporaryDirectory() as elsewhere, _home(elsewhere):
            config = _config()
        # Where ART would have put what it is told to save; nothing is written there until then.
        config.ART_DATA_PATH = str(home / "data")
    import art
    import art.attacks.evasion
    import art.estimators.classification

    art.config = sys.modules["art.config"]


def _config() -> Any:
    """The module art.config, which writes the folder, imported ahead of the package around it."""
    package = importlib.util.find_spec("art")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("ART is not installed: pip install adversarial-robustness-toolbox")
    path = Path(package.submodule_search_locations[0]) / "config.py"
    spec = importlib.util.spec_from_file_location("art.config", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["art.config"] = module
    return module


@contextlib.contextmanager
def _home(folder: str) -> Iterator[None]:
    """For a moment, `~` is another folder."""
    kept = {name: os.environ.get(name) for name in ("HOME", "USERPROFILE")}
    os.environ.update(dict.fromkeys(kept, folder))
    try:
        yield
    finally:
        for name, value in kept.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value
