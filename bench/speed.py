"""The same attack by this project's engine and by other libraries, and what its passes take alone.

What is compared are steps of one size along the gradient of cross-entropy, from the image or a random point:
every library has those, and each can be told the same radius, step, number of steps and start.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adversarial_bench.errors import UserError, unknown
from attacks.api import run_goal, standing
from attacks.core import Entry, Goal, ParameterError
from attacks.inits import Image
from attacks.libraries.adapter import LibraryAttack, distribution, seeded, silent
from attacks.models import PASS, Counted, frozen
from attacks.native import Attack
from attacks.objectives import CrossEntropy
from attacks.registry import catalogue, get, split
from attacks.updates import Normalized, Sign
from bench.executors.processes import alone
from bench.judge import judge
from bench.leaderboard import as_csv, flat, made_with
from bench.metrics import Estimate, rate
from bench.plan import Cell, Task
from bench.render.table import Table, as_markdown, number, percent
from bench.runner import averaged, halves, samples_of
from bench.timing import interleaved, ratio, spread

if TYPE_CHECKING:
    from torch import Tensor, nn

SETTINGS = ("eps", "steps", "step_size", "random_start")
"""What makes the work the same, by this project's names."""
ART_BATCH = 32
"""Images that each of ART's attacks takes at a time where its user does not say."""
SIDE = {"cpu": 2048, "cuda": 8192}
"""Rows of the square matrices whose product shows what arithmetic can be had."""

Passes = tuple[tuple[int, bool], ...]
"""Every pass that a network was asked for: how many images, and whether back to them as well."""
Call = Callable[[LibraryAttack, Counted, "Tensor", Goal], "Tensor"]


@dataclass(frozen=True)
class Peer:
    """Another library: how its user calls it, and what it has that the catalogue does not."""

    call: Call
    batch: int | None = None
    """Images at a time where its user does not say; None for all that it is given."""
    rows: tuple[LibraryAttack, ...] = ()


def _foolbox(row: LibraryAttack, model: Counted, images: Tensor, goal: Goal) -> Tensor:
    from attacks.libraries import foolbox

    return foolbox.call(row, model, images, goal, row.arguments())


def _art(row: LibraryAttack, model: Counted, images: Tensor, goal: Goal) -> Tensor:
    from attacks.libraries import art

    art.load()
    return art.call(row, model, images, goal, {**row.arguments(), "batch_size": ART_BATCH})


def _torchattacks(row: LibraryAttack, model: Counted, images: Tensor, goal: Goal) -> Tensor:
    import torchattacks

    found: Tensor = getattr(torchattacks, row.cls)(model, **row.arguments())(images, goal.classes)
    return found


def _adv_lib(row: LibraryAttack, model: Counted, images: Tensor, goal: Goal) -> Tensor:
    from adv_lib import attacks

    found: Tensor = getattr(attacks, row.cls)(model, images, goal.classes, **row.arguments())
    return found


_iterated = {"steps": 40, "step_size": None, "random_start": True}
_torchattack = partial(LibraryAttack, "torchattacks", source="Kim 2020, arXiv:2010.01950")

PEERS: Mapping[str, Peer] = {
    "foolbox": Peer(_foolbox),
    "art": Peer(_art, ART_BATCH),
    "torchattacks": Peer(
        _torchattacks,
        rows=(
            _torchattack("fgsm", "FGSM", "linf"),
            _torchattack("pgd", "PGD", "linf", values=_iterated, renamed={"step_size": "alpha"}),
            _torchattack("pgd_l2", "PGDL2", "l2", values=_iterated, renamed={"step_size": "alpha"}),
        ),
    ),
    "adv_lib": Peer(
        _adv_lib,
        rows=(
            LibraryAttack(
                "adv_lib",
                "pgd",
                "pgd_linf",
                "linf",
                "Rony & Ben Ayed, doi:10.5281/zenodo.5815063",
                _iterated,
                {"eps": "ε", "step_size": "absolute_step_size", "random_start": "random_init"},
            ),
        ),
    ),
}
"""By the name that each is imported under; one whose attacks are in the catalogue has no rows of its own."""


def _plain(entry: Entry) -> bool:
    """Is it steps of one size along the gradient of cross-entropy, within a radius?"""
    return (
        isinstance(entry, Attack)
        and entry.bounded
        and type(entry.objective) is CrossEntropy
        and type(entry.update) in (Sign, Normalized)
        and type(entry.init) is Image
    )


def native_of(cell: Cell) -> Attack:
    """The native attack of a cell, its step size settled. Raises ParameterError for what peers cannot do."""
    entry = get(cell.attack)
    beyond = sorted(set(split(cell.attack)[1]) - set(SETTINGS))
    if not isinstance(entry, Attack) or not _plain(entry) or beyond:
        known = [name.partition("/")[2] for name, each in catalogue().items() if _plain(each)]
        what = f"{', '.join(beyond)} of {cell.attack}" if beyond else cell.attack
        raise ParameterError(
            f"{what}: other libraries cannot be made to do the same work; bench speed compares "
            f"{', '.join(known)}, with {', '.join(SETTINGS)} as in pgd:steps=10"
        )
    entry = entry.configured(**cell.parameters)
    return entry.configured(step_size=entry.update.resolved(entry.threat.eps, entry.steps))


def row_of(peer: str, cell: Cell) -> LibraryAttack | None:
    """A library's attack that does the work of a cell's; None where it has none, or no such setting."""
    native = native_of(cell)
    rows = {row.short: row for row in PEERS[peer].rows}
    row = rows.get(native.short) or catalogue().get(f"{peer}/{native.short}")
    if not isinstance(row, LibraryAttack) or row.norm != native.norm:
        return None
    known = row.parameters()
    if not set(split(cell.attack)[1]) <= set(known) <= set(SETTINGS):
        return None
    wanted = native.parameters()
    return row.configured(**{name: wanted[name] for name in known})


def chosen_peers(asked: str | None, cells: Sequence[Cell]) -> tuple[list[str], list[str]]:
    """The peers to compare with, and a line for each of those left out; all of them where none is asked for.

    Raises UserError for work that cannot be compared, and for a peer that was asked for and is unknown, not
    installed, or without one of the attacks.
    """
    names = list(PEERS) if asked is None else [name.strip() for name in asked.split(",") if name.strip()]
    for name in names:
        if name not in PEERS:
            raise unknown("peer", name, PEERS)
    lacking = {}
    for name in names:
        without = list(dict.fromkeys(cell.attack for cell in cells if row_of(name, cell) is None))
        if find_spec(name) is None:
            lacking[name] = f"{name} is not installed (pip install {distribution(name)})"
        elif asked is not None and without:
            lacking[name] = f"{name} has nothing that does the work of {', '.join(without)}"
        elif len(without) == len({cell.attack for cell in cells}):
            lacking[name] = f"{name} has no {', '.join(without)}"
    left = [name for name in names if name not in lacking]
    if (asked is not None and lacking) or not left:
        raise UserError("; ".join(lacking.values()) or "--peers names no library")
    return left, list(lacking.values())


@dataclass(frozen=True)
class Stage:
    """What every engine is given: the model, and those of a task's images that it has right."""

    model: nn.Module
    stock: nn.Module
    """The same as a library's user has it: in the layout that torch gives a network."""
    images: Tensor
    goal: Goal
    ids: list[int]
    parts: list[list[int]]
    """The rows of each task."""
    n: int
    """Images of the task, right or wrong."""


def stage_of(tasks: Sequence[Task]) -> Stage:
    """The stage of a cell's tasks. Raises UserError where the model has no image right."""
    cell = tasks[0].cell
    model = averaged(cell.model, tasks[0].build, cell.device, cell.eot)
    asked = [sample for task in tasks for sample in task.ids]
    images, _, goal = samples_of(cell, asked)
    right = standing(model, images, goal, cell.batch_size)
    if not len(right):
        raise UserError(f"{cell.model} has none of the {len(asked)} images right: there is nothing to attack")
    ids = [asked[i] for i in right.tolist()]
    row = {sample: i for i, sample in enumerate(ids)}
    parts = [[row[sample] for sample in task.ids if sample in row] for task in tasks]
    stock = copy.deepcopy(model).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return Stage(model, stock, images[right], goal[right], ids, [part for part in parts if part], len(asked))


@dataclass(frozen=True)
class Engine:
    """One way to do the work on a stage: a line of the table."""

    name: str
    work: Callable[[Stage], Tensor]
    """The images (N, C, H, W) that it makes of a stage's."""
    version: str
    batch: str
    """Images that the network sees at a time, in words."""
    stock: bool = False
    """It is given the network as its user has it: parameters that take gradients, in torch's own layout."""

    def network(self, stage: Stage) -> nn.Module:
        """The one that it attacks."""
        return stage.stock if self.stock else stage.model

    def run(self, stage: Stage) -> Tensor:
        """Does the work."""
        with nullcontext() if self.stock else frozen(stage.model):
            return self.work(replace(stage, model=self.network(stage)))

    def prepared(self) -> Engine:
        """The same with a network that has this project's layout and takes no gradients of parameters."""
        return replace(self, name=f"{self.name}, prepared", stock=False)


def _native(entry: Attack, cell: Cell, stage: Stage) -> Tensor:
    """As `bench run` does it: a shard after the other, each in batches."""
    with torch.autocast(stage.images.device.type, torch.bfloat16, enabled=cell.fast):
        found = [
            run_goal(
                entry,
                stage.model,
                stage.images[part],
                stage.goal[part],
                seed=cell.seed,
                ids=[stage.ids[row] for row in part],
                batch_size=cell.batch_size,
            ).images
            for part in stage.parts
        ]
    return torch.cat(found)


def _peer(peer: Peer, row: LibraryAttack, seed: int, stage: Stage) -> Tensor:
    """As the library's user calls it: once, with all the images, and its defaults beyond the settings."""
    with seeded(seed, stage.images.device), silent():
        # Its user would let the network see whole batches.
        bridge = Counted(stage.model, size=len(stage.images)).train(False)
        return peer.call(row, bridge, stage.images.clone(), stage.goal).to(stage.images.device)


def engines(cell: Cell, peers: Sequence[str]) -> list[Engine]:
    """Who does a cell's work, the native engine first: as `bench run` has it, then with every step taken.

    A cell whose gradients may be in bfloat16 has the native engine with and without.
    """
    entry = native_of(cell)
    plain = replace(cell, fast=False)
    batch = str(PASS) if cell.device == "cpu" else f"≤ {cell.batch_size}"
    found = [Engine(cell.attack, partial(_native, entry, plain), f"adversarial-bench {entry.version}", batch)]
    if cell.fast:
        half = partial(_native, entry, cell)
        found.append(Engine(f"{cell.attack}, bfloat16", half, found[0].version, batch))
    if entry.parameters()["stop"] != "never":
        every = partial(_native, entry.configured(stop="never"), plain)
        found.append(Engine(f"{cell.attack}:stop=never", every, found[0].version, batch))
    for name in peers:
        if row := row_of(name, cell):
            peer = PEERS[name]
            size = "all" if peer.batch is None else str(peer.batch)
            work = partial(_peer, peer, row, cell.seed)
            found.append(Engine(row.name, work, row.version, size, stock=True))
    return found


@contextmanager
def recorded_passes(model: nn.Module) -> Iterator[Callable[[], Passes]]:
    """Inside, the passes that the model is asked for are written down; the function says which."""
    found: list[tuple[int, bool]] = []

    def forward(module: nn.Module, inputs: Any, output: Tensor) -> None:
        at, count = len(found), len(output)
        found.append((count, False))
        if output.requires_grad:
            output.register_hook(lambda grad: found.__setitem__(at, (count, True)))

    handle = model.register_forward_hook(forward)
    try:
        yield lambda: tuple(found)
    finally:
        handle.remove()


def bare(model: nn.Module, images: Tensor, passes: Passes) -> None:
    """The floor of an attack: its passes over batches of the same sizes, parameters frozen, nothing else."""
    with frozen(model):
        for count, back in passes:
            x = images[:count].detach().requires_grad_(back)
            with torch.set_grad_enabled(back):
                logits = model(x)
            if back:
                logits.sum().backward()


def flop_of(model: nn.Module, images: Tensor, passes: Passes) -> float:
    """Floating-point operations of the passes, counted on two images: they grow with the batch."""
    from torch.utils.flop_counter import FlopCounterMode

    per_image = {}
    for back in {back for _, back in passes}:
        with FlopCounterMode(display=False) as counter:
            bare(model, images[:2], ((len(images[:2]), back),))
        per_image[back] = counter.get_total_flops() / len(images[:2])
    return sum(count * per_image[back] for count, back in passes)


def on_gpu(device: str) -> bool:
    """Is it a CUDA device?"""
    return device.startswith("cuda")


def peak_memory(device: str) -> float:
    """The most bytes this process has held, on the GPU or resident; NaN where the system does not say."""
    if on_gpu(device):
        return float(torch.cuda.max_memory_allocated(device))
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return math.nan
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), math.nan)


def _memory_of(engine: Engine, tasks: Sequence[Task], threads: int) -> float:
    """`peak_memory` of a process of its own that does one engine's work."""
    torch.set_num_threads(threads)
    engine.run(stage_of(tasks))
    return peak_memory(tasks[0].cell.device)


@dataclass(frozen=True)
class Row:
    """What one engine took and reached."""

    engine: Engine
    passes: Passes
    attacked: int
    robust_accuracy: Estimate
    """Of all images, those that were right and still are, judged by the harness."""
    seconds: tuple[float, ...]
    """A round each."""
    floor: tuple[float, ...]
    """Of its passes alone, in the same rounds."""
    native: tuple[float, ...]
    """Of the first row, in the same rounds."""
    at_peak: float
    """Seconds that the passes' arithmetic takes at the fastest matrix product that was seen."""
    memory: float
    """The most bytes that a process of its own held: see `peak_memory`."""

    def per_image(self, back: bool) -> float:
        """Forward passes, or those that went back as well, of each image."""
        return sum(count for count, went in self.passes if went or not back) / self.attacked

    def as_dict(self) -> dict[str, Any]:
        """For JSON; every round is in it."""
        time = spread(self.seconds)
        return {
            "engine": self.engine.name,
            "version": self.engine.version,
            "batch": self.engine.batch,
            "seconds": vars(time),
            "ratio_to_native": vars(ratio(self.seconds, self.native)),
            "image_steps_per_second": self.per_image(back=True) * self.attacked / time.median,
            "robust_accuracy": self.robust_accuracy.as_dict(),
            "n": self.robust_accuracy.n,
            "forwards_per_image": self.per_image(back=False),
            "backwards_per_image": self.per_image(back=True),
            "floor_seconds": vars(spread(self.floor)),
            "ratio_to_floor": vars(ratio(self.seconds, self.floor)),
            "seconds_at_matmul_peak": self.at_peak,
            "peak_memory_bytes": None if math.isnan(self.memory) else round(self.memory),
            "rounds": list(self.seconds),
            "floor_rounds": list(self.floor),
        }


@dataclass(frozen=True)
class Comparison:
    """One model, attack and radius by every engine."""

    cell: Cell
    attacked: int
    n: int
    rows: tuple[Row, ...]
    threads: int
    flop_per_second: float
    """Of the fastest matrix product that was seen."""
    flags: tuple[str, ...]
    """What must be said of the model."""
    crashed: Mapping[str, str]
    """Engines that raised, with what they said."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        native = native_of(self.cell).parameters()
        return {
            "model": self.cell.model,
            "dataset": self.cell.dataset,
            "attack": self.cell.attack,
            "norm": self.cell.threat.norm,
            **{name: native[name] for name in SETTINGS},
            "images": self.n,
            "attacked": self.attacked,
            "threads": self.threads,
            "model_flags": list(self.flags),
            "matmul_flop_per_second": self.flop_per_second,
            "crashed": dict(self.crashed),
            "rows": [row.as_dict() for row in self.rows],
        }


def compare(
    tasks: Sequence[Task],
    peers: Sequence[str],
    rounds: int,
    flags: Sequence[str] = (),
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Comparison:
    """One cell's work by every engine, in this process and in interleaved rounds.

    A first run of each, not timed, is what is judged and whose passes are counted. A library that computed
    gradients of parameters in it, or whose user's network has another layout, has a second turn, prepared.
    `progress` is told what is at work, how much is done, and of how much. Raises UserError where the model
    has no image right.
    """
    cell, stage = tasks[0].cell, stage_of(tasks)
    if cell.fast and not halves(stage.model, stage.images[:50]):
        cell = replace(cell, fast=False)
    parameters = list(stage.stock.parameters())
    other = any(mine.stride() != own.stride() for mine, own in zip(stage.model.parameters(), parameters))
    entrants: list[tuple[Engine, Passes, Estimate]] = []
    crashed: dict[str, str] = {}
    waiting = engines(cell, peers)
    while waiting:
        engine = waiting.pop(0)
        progress(f"first run: {engine.name}", len(entrants), len(entrants) + len(waiting) + 1)
        _clear(parameters)
        try:
            with recorded_passes(engine.network(stage)) as passes:
                images = engine.run(stage)
            verdict = judge(stage.model, images, stage.images, stage.goal, cell.threat, cell.batch_size)
        except Exception as error:  # whatever a library does, the others go on
            if not entrants:
                raise
            crashed[engine.name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            continue
        entrants.append((engine, passes(), rate(int((~verdict["success"]).sum()), stage.n)))
        if engine.stock and (other or any(parameter.grad is not None for parameter in parameters)):
            waiting.insert(0, engine.prepared())
    side = SIDE["cuda" if on_gpu(cell.device) else "cpu"]
    matrix = torch.rand(side, side, device=cell.device)
    jobs: dict[str | Passes, Callable[[], object]] = {"product": partial(torch.mm, matrix, matrix)}
    for engine, made, _ in entrants:
        jobs[engine.name] = partial(engine.run, stage)
        # Right behind, and once for all who make the same passes.
        jobs.setdefault(made, partial(bare, stage.model, stage.images, made))
    jobs["product"]()
    ticks = iter(range(1, rounds * len(jobs) + 1))

    def tick() -> None:
        progress(f"{cell.model} {cell.attack}", next(ticks), rounds * len(jobs))

    seconds = dict(zip(jobs, interleaved(list(jobs.values()), rounds, tick)))
    _clear(parameters)
    best = 2 * side**3 / min(seconds["product"])
    rows: list[Row] = []
    for engine, made, robust in entrants:
        progress(f"memory: {engine.name}", len(rows), len(entrants))
        memory = alone(_memory_of, engine, tasks, torch.get_num_threads())
        rows.append(
            Row(
                engine,
                made,
                len(stage.images),
                robust,
                seconds[engine.name],
                seconds[made],
                seconds[entrants[0][0].name],
                flop_of(stage.model, stage.images, made) / best,
                memory,
            )
        )
    return Comparison(
        cell, len(stage.images), stage.n, tuple(rows), torch.get_num_threads(), best, tuple(flags), crashed
    )


def _clear(parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def tables(found: Sequence[Comparison]) -> list[Table]:
    """A table per comparison, a line per engine."""
    return [_table(each) for each in found]


COLUMNS = (
    "engine",
    "batch",
    "s",
    "× native",
    "img·steps/s",
    "robust %",
    "fwd",
    "bwd",
    "floor s",
    "× floor",
    "at peak s",
    "MB",
    "version",
)


def _table(found: Comparison) -> Table:
    settings = native_of(found.cell).parameters()
    start = "a random point" if settings["random_start"] else "the image"
    steps = f"{settings['steps']} × {settings['step_size']:g} from {start}"
    images = f"{found.attacked} of {found.n} images, right before"
    title = f"{found.cell.model} · {found.cell.threat} · {steps} · {images} · threads: {found.threads}"
    lines = []
    for row in found.rows:
        lines.append(
            (
                row.engine.name,
                row.engine.batch,
                spread(row.seconds).text(),
                "1" if row.seconds is row.native else ratio(row.seconds, row.native).text(2),
                number(row.per_image(back=True) * row.attacked / spread(row.seconds).median, 0),
                percent(row.robust_accuracy),
                number(row.per_image(back=False), 1),
                number(row.per_image(back=True), 1),
                spread(row.floor).text(),
                ratio(row.seconds, row.floor).text(2),
                number(row.at_peak, 3),
                number(row.memory / 1e6, 0),
                row.engine.version,
            )
        )
    kind = "allocated on the GPU" if on_gpu(found.cell.device) else "resident, libraries included"
    notes = [
        f"s: median [least–greatest] of {len(found.rows[0].seconds)} interleaved rounds",
        "× native, × floor: median [least–greatest] of the ratios within a round",
        "img·steps/s: images times steps really taken, by the second",
        "fwd, bwd: passes that the network was asked for, per image",
        "floor: the same passes bare, parameters frozen",
        f"at peak: their arithmetic at {found.flop_per_second / 1e9:.0f} GFLOP/s, a large matrix product's",
        f"MB: {kind}, at most, in a process of its own",
        "stop=never: every step taken, as the peers do",
    ]
    if found.cell.fast:
        notes.append("bfloat16: gradients in half precision; its floor is in float32")
    if any(row.engine.stock for row in found.rows):
        notes.append(
            "libraries have the network in torch's own layout, as users do; prepared: in this project's, "
            "without gradients of parameters"
        )
    notes += found.flags
    notes += [f"{engine} crashed and is left out: {message}" for engine, message in found.crashed.items()]
    left = frozenset({"engine", "version"})
    minor = ("version", "at peak s", "img·steps/s", "floor s", "batch", "MB", "fwd")
    return Table(title, COLUMNS, tuple(lines), "; ".join(notes), left, minor)


def document(
    found: Sequence[Comparison], left_out: Sequence[str], command: str, stamp: Mapping[str, Any]
) -> dict[str, Any]:
    """The comparisons as JSON: schema 1; `left_out` says which peers are not among them."""
    return {
        "schema": 1,
        "command": command,
        "left_out": list(left_out),
        "comparisons": [each.as_dict() for each in found],
        "stamp": dict(stamp),
    }


def records(document: Mapping[str, Any]) -> str:
    """The rows of a document as CSV, one per engine."""
    found = []
    for comparison in document["comparisons"]:
        head = flat({name: value for name, value in comparison.items() if name not in ("rows", "crashed")})
        found += [{**head, **flat(row)} for row in comparison["rows"]]
    return as_csv(found)


def as_page(document: Mapping[str, Any], shown: Sequence[Table]) -> str:
    """The tables of a document as one Markdown page, with the command that measures it again."""
    head = [
        "# Speed",
        "",
        "The same steps on the same images by this project's engine and by other libraries. Machines are",
        "noisy: quote the ratios, which are of the same rounds.",
        "",
        "```",
        document["command"],
        "```",
        "",
        f"Made with {made_with(document['stamp'])}.",
        *document["left_out"],
        "",
    ]
    return "\n".join([*head, "\n\n".join(map(as_markdown, shown)), ""])
