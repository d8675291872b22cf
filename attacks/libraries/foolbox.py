"""foolbox's attacks (Rauber et al. 2020, doi:10.21105/joss.02607).

Left out, and why (foolbox 3.3.4):

- NewtonFoolAttack: returns NaN for nearly all images and calls them successes.
- L1, L2 AdamBasicIterativeAttack: the same as the plain ones; the Linf one is adam_pgd with no random start.
- the four BrendelBethgeAttacks: need numba, and a minute of compilation each.
- DatasetAttack: swaps the image for another one of the data set.
- BinarizationRefinementAttack: for models that binarise their input.
- targeted DeepFool: takes the criterion, and runs untargeted.
- targeted BoundaryAttack, HopSkipJumpAttack, PointwiseAttack: no noise lands in a given class to start from.

L2FMNAttack is weak: its projection onto the ball divides a norm by itself, and so never projects.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from attacks.core import Norm
from attacks.libraries.adapter import TARGETED, UNTARGETED, LibraryAttack

if TYPE_CHECKING:
    from torch import Tensor

    from attacks.core import Goal
    from attacks.models import Counted

_row = partial(LibraryAttack, "foolbox")
_STEP = {"step_size": "abs_stepsize"}
_FGSM = "Goodfellow et al. 2015, arXiv:1412.6572"
_BIM = "Kurakin et al. 2017, arXiv:1607.02533"
_PGD = "Madry et al. 2018, arXiv:1706.06083"
_MIFGSM = "Dong et al. 2018, arXiv:1710.06081"
_FOOLBOX = "Rauber et al. 2020, doi:10.21105/joss.02607"
_CLIPPING = "Rauber & Bethge 2020, arXiv:2007.07677"

_MINIMAL = frozenset({"gradient", "minimal"})
_DECISION = frozenset({"decision"})
_SEARCH = frozenset({"decision", "minimal", "slow"})


_norms: tuple[tuple[Norm, str, str], ...] = (("linf", "", "Linf"), ("l2", "_l2", "L2"), ("l1", "_l1", "L1"))


def _all(short: str, cls: str, source: str, values: dict[str, Any], **more: Any) -> Iterator[LibraryAttack]:
    """One attack that the library has for Linf, L2 and L1."""
    for norm, suffix, prefix in _norms:
        yield _row(short + suffix, prefix + cls, norm, source, values, **more)


_iterated = {"steps": 10, "step_size": None, "random_start": False}
_salt_and_pepper = _row(
    "salt_and_pepper",
    "SaltAndPepperNoiseAttack",
    "l2",
    _FOOLBOX,
    {"steps": 50, "across_channels": True},
    fixed={"channel_axis": None},
    tags=_DECISION | {"minimal"},
)
_fmn: tuple[tuple[Norm, str], ...] = (("linf", "LInf"), ("l2", "L2"), ("l1", "L1"), ("l0", "L0"))
_noise: tuple[tuple[str, Norm, str, str], ...] = (
    ("noise", "linf", "LinfAdditiveUniformNoiseAttack", _FOOLBOX),
    ("noise_l2", "l2", "L2AdditiveUniformNoiseAttack", _FOOLBOX),
    ("gaussian_l2", "l2", "L2AdditiveGaussianNoiseAttack", _FOOLBOX),
    ("clipping_noise_l2", "l2", "L2ClippingAwareAdditiveUniformNoiseAttack", _CLIPPING),
    ("clipping_gaussian_l2", "l2", "L2ClippingAwareAdditiveGaussianNoiseAttack", _CLIPPING),
)

ATTACKS: tuple[LibraryAttack, ...] = (
    *_all(
        "fgsm",
        # FastGradientAttack is this class with one step, and refuses targets.
        "BasicIterativeAttack",
        _FGSM,
        {"random_start": False},
        fixed={"steps": 1, "rel_stepsize": 1.0, "abs_stepsize": None},
    ),
    *_all("bim", "BasicIterativeAttack", _BIM, _iterated, renamed=_STEP),
    *_all(
        "pgd",
        "ProjectedGradientDescentAttack",
        _PGD,
        {"steps": 40, "step_size": None, "random_start": True},
        renamed=_STEP,
    ),
    *_all(
        "mifgsm",
        "MomentumIterativeFastGradientMethod",
        _MIFGSM,
        {**_iterated, "momentum": 1.0},
        renamed=_STEP,
    ),
    *_all(
        "adam_pgd",
        "AdamProjectedGradientDescentAttack",
        f"{_PGD}; Kingma & Ba 2015, arXiv:1412.6980",
        {
            "steps": 20,
            "step_size": None,
            "random_start": True,
            "adam_beta1": 0.9,
            "adam_beta2": 0.999,
            "adam_epsilon": 1e-8,
        },
        renamed=_STEP,
    ),
    _row(
        "sparse_l1_descent",
        "SparseL1DescentAttack",
        "l1",
        "Tramèr & Boneh 2019, arXiv:1904.13000",
        {"steps": 20, "step_size": None, "random_start": False, "quantile": 0.99},
        _STEP,
        # In a batch, its projection throws images that lie inside the ball out of it.
        alone=True,
    ),
    _row(
        "vat",
        "VirtualAdversarialAttack",
        "l2",
        "Miyato et al. 2016, arXiv:1507.00677",
        {"steps": 5, "xi": 1e-2},
        goals=UNTARGETED,
    ),
    _row(
        "ddn",
        "DDNAttack",
        "l2",
        "Rony et al. 2019, arXiv:1811.09600",
        {"steps": 40, "init_epsilon": 1.0, "gamma": 0.05},
        tags=_MINIMAL,
    ),
    _row(
        "cw_l2",
        "L2CarliniWagnerAttack",
        "l2",
        "Carlini & Wagner 2017, arXiv:1608.04644",
        {
            "steps": 40,
            "step_size": 0.2,
            "binary_search_steps": 2,
            "initial_const": 3.0,
            "confidence": 0.0,
            # It would stop the whole batch, long before most of it is done.
            "abort_early": False,
        },
        {"step_size": "stepsize"},
        tags=_MINIMAL,
        black_on_failure=True,
    ),
    _row(
        "ead",
        "EADAttack",
        "l1",
        "Chen et al. 2018, arXiv:1709.04114",
        {
            "steps": 30,
            "step_size": 0.05,
            "binary_search_steps": 3,
            "initial_const": 1.0,
            "confidence": 0.0,
            "regularization": 0.01,
            "decision_rule": "L1",
            "abort_early": True,
        },
        {"step_size": "initial_stepsize"},
        tags=_MINIMAL,
    ),
    *(
        _row(
            f"fmn_{norm}",
            f"{prefix}FMNAttack",
            norm,
            "Pintor et al. 2021, arXiv:2102.12827",
            {"steps": 40, "max_stepsize": 1.0, "min_stepsize": None, "gamma": 0.05},
            # The binary search only refines a given start, of which there is none.
            fixed={"init_attack": None, "binary_search_steps": 10},
            tags=_MINIMAL,
        )
        for norm, prefix in _fmn
    ),
    *(
        _row(
            f"deepfool_{norm}",
            f"{prefix}DeepFoolAttack",
            norm,
            "Moosavi-Dezfooli et al. 2016, arXiv:1511.04599",
            {"steps": 50, "candidates": 10, "overshoot": 0.02},
            fixed={"loss": "logits"},
            goals=UNTARGETED,
            tags=_MINIMAL,
        )
        for norm, _, prefix in _norms[:2]
    ),
    *(
        _row(short, cls, norm, source, goals=UNTARGETED, tags=_DECISION)
        for short, norm, cls, source in _noise
    ),
    *(
        _row(
            f"repeated_{short}",
            cls.replace("Additive", "RepeatedAdditive"),
            norm,
            source,
            {"repeats": 50},
            fixed={"check_trivial": True},
            tags=_DECISION,
        )
        for short, norm, cls, source in _noise
    ),
    _row(
        "contrast_l2",
        "L2ContrastReductionAttack",
        "l2",
        _FOOLBOX,
        {"target": 0.5},
        goals=UNTARGETED,
        tags=_DECISION,
    ),
    _row(
        "gen_attack",
        "GenAttack",
        "linf",
        "Alzantot et al. 2019, arXiv:1805.11090",
        {
            "steps": 100,
            "population": 10,
            "mutation_probability": 0.1,
            "mutation_range": 0.15,
            "sampling_temperature": 0.3,
        },
        fixed={"channel_axis": None, "reduced_dims": None},
        goals=TARGETED,
        tags=frozenset({"score", "slow"}),
    ),
    _salt_and_pepper,
    _row(
        "pointwise",
        "PointwiseAttack",
        "l0",
        "Schott et al. 2019, arXiv:1805.09190",
        fixed={"init_attack": _salt_and_pepper, "l2_binary_search": False},
        goals=UNTARGETED,
        tags=_SEARCH,
        alone=True,
    ),
    _row(
        "boundary",
        "BoundaryAttack",
        "l2",
        "Brendel et al. 2018, arXiv:1712.04248",
        {
            "steps": 500,
            "spherical_step": 0.01,
            "source_step": 0.01,
            "source_step_convergance": 1e-7,
            "step_adaptation": 1.5,
        },
        fixed={"init_attack": _salt_and_pepper, "tensorboard": False, "update_stats_every_k": 10},
        goals=UNTARGETED,
        tags=_SEARCH,
        alone=True,
    ),
    *(
        _row(
            f"hopskipjump_{norm}",
            "HopSkipJumpAttack",
            norm,
            "Chen et al. 2020, arXiv:1904.02144",
            {
                "steps": 10,
                "initial_gradient_eval_steps": 50,
                "max_gradient_eval_steps": 200,
                "gamma": 1.0,
            },
            fixed={
                "constraint": norm,
                "init_attack": _salt_and_pepper,
                "stepsize_search": "geometric_progression",
                "tensorboard": False,
            },
            goals=UNTARGETED,
            tags=_SEARCH,
            alone=True,
        )
        for norm, _, _ in _norms[:2]
    ),
    _row(
        "contrast",
        "BinarySearchContrastReductionAttack",
        "unrestricted",
        _FOOLBOX,
        {"binary_search_steps": 15, "target": 0.5},
        fixed={"distance": None},
        tags=_DECISION,
    ),
    _row(
        "contrast_linear",
        "LinearSearchContrastReductionAttack",
        "unrestricted",
        _FOOLBOX,
        {"steps": 50, "target": 0.5},
        fixed={"distance": None},
        tags=_DECISION,
    ),
    _row(
        "blur",
        "GaussianBlurAttack",
        "unrestricted",
        _FOOLBOX,
        {"steps": 50, "max_sigma": None},
        fixed={"distance": None, "channel_axis": None},
        tags=_DECISION,
    ),
    _row(
        "inversion",
        "InversionAttack",
        "unrestricted",
        "Hosseini et al. 2017, arXiv:1703.06857",
        fixed={"distance": None},
        goals=UNTARGETED,
        tags=_DECISION,
    ),
    _row(
        "blended",
        "LinearSearchBlendedUniformNoiseAttack",
        "unrestricted",
        _FOOLBOX,
        {"steps": 50, "directions": 50},
        fixed={"distance": None},
        tags=_DECISION,
    ),
    _row(
        "spatial",
        "SpatialAttack",
        "unrestricted",
        "Engstrom et al. 2019, arXiv:1712.02779",
        {
            "max_translation": 3,
            "max_rotation": 30,
            "num_translations": 5,
            "num_rotations": 5,
        },
        fixed={"grid_search": True, "random_steps": 100},
        tags=_DECISION,
    ),
)


def load() -> None:
    """Imports foolbox."""
    import foolbox  # noqa: F401


def call(
    row: LibraryAttack, bridge: Counted, images: Tensor, goal: Goal, arguments: dict[str, Any]
) -> Tensor:
    """Runs one row on one batch."""
    from foolbox import attacks
    from foolbox.criteria import Misclassification, TargetedMisclassification
    from foolbox.models.pytorch import PyTorchModel

    def build(row: LibraryAttack, arguments: dict[str, Any]) -> Any:
        # An argument that is itself a row finds the starting points.
        inner = {
            k: build(v, v.arguments()) if isinstance(v, LibraryAttack) else v for k, v in arguments.items()
        }
        return getattr(attacks, row.cls)(**inner)

    # `run` rather than calling the attack: that would only add a forward pass to judge the images.
    radius = {"epsilon": arguments.pop("eps")} if row.bounded else {}
    model = PyTorchModel(bridge, bounds=(0, 1), device=images.device)
    criterion = TargetedMisclassification if goal.kind == "targeted" else Misclassification
    found: Tensor = build(row, arguments).run(model, images, criterion(goal.classes), **radius)
    return found
