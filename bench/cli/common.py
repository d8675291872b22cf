"""What the verbs share: options, output, progress."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from adversarial_bench.errors import UserError
from bench.render.table import RENDERERS, Table, duration, file_names, printed, write_parquet
from bench.request import ExecutorName, Request

if TYPE_CHECKING:
    from bench.executors import Executor
    from bench.session import Progress
    from zoo import Dataset

F = TypeVar("F", bound=Callable[..., Any])


def options(*chosen: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, in reading order."""

    def decorate(function: F) -> F:
        for option in reversed(chosen):
            function = option(function)
        return function

    return decorate


class Positive(click.FloatRange):
    """A number above 0: neither NaN, which a range takes for inside it, nor infinity."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found: float = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value} is no finite number", param, ctx)
        return found


class StorePath(click.Path):
    """A folder, or a URL of a file system that fsspec knows."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, file_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Raises StoreError for a file system that does not answer."""
        if isinstance(value, str) and "://" in value:
            from bench.store import location

            return location(value)
        return super().convert(value, param, ctx)


THREADS = click.IntRange(1, 1024)
"""More overflow a number of torch's, or take a machine's memory."""
model_argument = click.argument("model", required=False)
results_option = click.option(
    "--results",
    type=StorePath(),
    default=lambda: os.environ.get("BENCH_RESULTS", "results"),
    show_default="$BENCH_RESULTS, else ./results",
    help="The folder that results are stored in, or its URL: s3://BUCKET/FOLDER.",
)


@dataclass(frozen=True)
class Output:
    """How a verb answers: in what format, and in which folder where it is not to be printed.

    Raises UserError for a format that cannot go there.
    """

    form: str = "text"
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.form == "parquet" and self.folder is None:
            raise UserError("--format parquet is not printed: name a folder for the tables by --tables")
        if self.form == "json" and self.folder is not None:
            raise UserError("--format json is one document, which is printed; leave out --tables")


def output_options(function: F) -> F:
    """`--format`, `--json`, `--csv` and `--tables`, which a verb gets as its `output`."""

    @click.option(
        "--format",
        "form",
        type=click.Choice([*RENDERERS, "json", "parquet"]),
        help="Of the tables; JSON is one document with more in it than they show.  [default: text]",
    )
    @click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
    @click.option("--csv", "as_csv", is_flag=True, help="The same as --format csv.")
    @click.option(
        "--tables",
        type=StorePath(),
        help="A folder: write each table there, a file of its own, and print none.",
    )
    @wraps(function)
    def command(
        *given: Any, form: str | None, as_json: bool, as_csv: bool, tables: Path | None, **named: Any
    ) -> Any:
        short = {"json": as_json, "csv": as_csv}
        forms = sorted({*filter(None, [form]), *(name for name, given in short.items() if given)})
        if len(forms) > 1:
            raise UserError(f"one format at a time: --format {forms[0]}, or --format {forms[1]}")
        output = Output(forms[0] if forms else "text", tables)
        return function(*given, output=output, **named)

    return command  # type: ignore[return-value]


seed_option = click.option(
    "--seed", type=int, default=Request.seed, show_default=True, help="Seed of every random draw."
)
device_option = click.option(
    "--device", default=Request.device, show_default=True, help="cpu, cuda, cuda:1 …"
)
eot_option = click.option(
    "--eot",
    type=click.IntRange(1),
    help="Draws that a randomised model is averaged over, in attack and verdict.  "
    "[default: 20 behind a random transform, +gaussian or +randomresize; else 1]",
)
adaptive_option = click.option(
    "--adaptive/--no-adaptive",
    default=Request.adaptive,
    show_default=True,
    help="Attack through transforms before a network (BPDA, EoT), or as if they were not known.",
)
weights_option = click.option(
    "--weights",
    type=click.Path(),
    help="A file of weights for the model: safetensors, or a state dict of torch.save.",
)
build_options = options(
    click.option("--pretrained", is_flag=True, help="Download the weights of timm: and torchvision: models."),
    click.option(
        "--num-classes",
        type=click.IntRange(1),
        help="Outputs of timm:, torchvision: and file.py: models.  [default: the dataset's classes]",
    ),
    click.option("--dataset", help="The dataset.  [default: the model's own, else mnist]"),
)
executor_options = options(
    click.option(
        "--workers",
        type=click.IntRange(1),
        help="Processes, or shards that a cluster has at once.  "
        "[default: one per core, at most 4, or with cuda one per GPU; all that a running cluster has]",
    ),
    click.option(
        "--executor",
        type=click.Choice(get_args(ExecutorName)),
        help="Who computes.  [default: processes, where there are several workers]",
    ),
    click.option(
        "--address",
        help="ray: a running cluster, HOST:PORT or auto; without it one is started here. "
        "slurm: local, for jobs on this machine.",
    ),
)


def figure_options(folder: str, what: str) -> Callable[[F], F]:
    """What the verbs take that draw beside their tables, by default under the results' `folder`."""
    return options(
        click.option("--figure/--no-figure", default=True, show_default=True, help=what),
        click.option(
            "--out",
            type=StorePath(),
            help=f"The figures' folder.  [default: RESULTS/{folder}]",
        ),
        click.option(
            "--save",
            metavar="NAME",
            callback=_plain,
            help="Also write findings, figures and tables as a page, RESULTS/leaderboards/NAME.md.",
        ),
    )


def _plain(context: click.Context, option: click.Parameter, name: str | None) -> str | None:
    if name is not None and not re.fullmatch(r"[\w@+.-]*\w", name):
        raise UserError(f"--save takes a name without folders, as in --save defences; got {name!r}")
    return name


eps_option = click.option(
    "--eps", help="Radii in [0, 1] pixel units: 0.1,0.3 or 8/255 for Linf, l2=1.5 for other norms."
)


def samples_option(samples: int) -> Callable[[F], F]:
    """`--samples`, which says that its default is this number."""
    return click.option(
        "--samples",
        type=int,
        help=f"Test images to attack.  [default: {samples}, or all where there are fewer]",
    )


def _settings(context: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    """`--param` by name."""
    for text in texts:
        name, equals, _ = text.partition("=")
        if not equals or not name.rpartition(".")[2].strip():
            raise UserError(f"--param takes NAME=VALUE or ATTACK.NAME=VALUE; got {text!r}")
    return {name.strip(): value.strip() for name, _, value in (text.partition("=") for text in texts)}


def slice_options(samples: int) -> Callable[[F], F]:
    """What `run`, `transfer` and `compare` take; they say that their default is this number of samples."""
    return options(
        build_options,
        samples_option(samples),
        eps_option,
        click.option("--targets", help="Attack towards a class: random, next or a class number."),
        click.option("--preset", help="Hyperparameters of an assignment: report, hw2, midterm."),
        click.option(
            "--param",
            multiple=True,
            callback=_settings,
            help="NAME=VALUE or ATTACK.NAME=VALUE; may be repeated.",
        ),
        click.option(
            "--restarts",
            type=click.IntRange(1),
            default=Request.restarts,
            show_default=True,
            help="Tries on what still stands.",
        ),
        eot_option,
        adaptive_option,
        seed_option,
        device_option,
        click.option(
            "--batch-size",
            type=click.IntRange(1),
            help="Samples per batch.  [default: 128 on a CPU; on a GPU what memory has room for]",
        ),
        executor_options,
        click.option(
            "--timeout",
            type=Positive(),
            help="Seconds that an attack may take for a shard; its samples are errors then.",
        ),
        results_option,
        output_options,
    )


def named(model: str | None, verb: str) -> str:
    """The model that a verb was given. Raises UserError, which names the zoo's, where it was given none."""
    from zoo.registry import names

    if model is None:
        raise UserError(f"name a model, as in `bench {verb} mnist_cnn`; the zoo has {', '.join(names())}")
    return model


def command_line() -> str:
    """The command that is running, as it can be typed again."""
    return f"bench {shlex.join(sys.argv[1:])}"


def samples_of(asked: int | None, default: int, dataset: Dataset) -> int:
    """How many test images: what was asked for, else the default or as many as are here."""
    from zoo.datasets import here

    return min(default, here(dataset)) if asked is None else asked


def device_of(name: str) -> str:
    """The device, if this machine has it. Raises UserError where it does not."""
    import torch

    try:
        # Some devices of torch's hold no numbers.
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"the device {name!r} cannot be used here: {first}") from error
    return name


def executor_of(request: Request, results: Path) -> Executor:
    """Who computes a request. Raises UserError for what does not go together, or is not here."""
    name, workers, address, timeout = request.executor, request.workers, request.address, request.timeout
    if address is not None and name not in ("ray", "slurm"):
        raise UserError("--address goes with --executor ray or slurm")
    if name == "slurm" and address not in (None, "local"):
        raise UserError(f"--executor slurm knows the --address local alone; got {address!r}")
    if name == "serial" and workers not in (None, 1):
        raise UserError(f"--executor serial is one worker; leave out --workers {workers}")
    if name == "serial" and timeout is not None:
        raise UserError("--executor serial cannot stop an attack that hangs; --timeout takes another one")
    cards = _cards(request.device)
    here = workers or (_on_cpu() if request.device == "cpu" else max(1, cards))
    if name == "ray":
        from bench.executors.ray import Ray

        return Ray(workers if address else here, address, request.device, timeout)
    if name == "slurm":
        from bench.executors.slurm import Slurm

        return Slurm(here, address == "local", request.device, results, timeout)
    if name == "serial" or (name is None and here == 1 and timeout is None):
        from bench.executors import HERE

        return HERE
    from bench.executors.processes import Processes

    return Processes(here, timeout, spare=name is None and workers is None, cards=cards)


def ready(request: Request) -> None:
    """Has a request's worker processes, if it has several, import torch while this process does."""
    processes = request.executor in (None, "processes") and request.device == "cpu"
    if processes and (request.workers or _on_cpu()) > 1:
        from bench import forks

        forks.begin()


def _on_cpu() -> int:
    """Workers on a CPU, where their number is not said."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(4, cores)


def _cards(device: str) -> int:
    """The GPUs that a device's name leaves to choose from: `cuda` all of them, another name none."""
    if device != "cuda":
        return 0
    import torch

    return torch.cuda.device_count()


def show(tables: list[Table], output: Output = Output()) -> None:
    """Prints tables, rich ones on a terminal, or writes them into the output's folder.

    Raises StoreError for a folder that cannot be written to.
    """
    if output.folder is not None:
        _write(tables, output.form, output.folder)
    elif output.form != "text" or not sys.stdout.isatty():
        click.echo(printed(tables, output.form))
    else:
        from bench.render.terminal import print_tables

        print_tables(tables)


def _write(tables: list[Table], form: str, folder: Path) -> None:
    from adversarial_bench.files import write_text, write_whole
    from bench.store import writing

    ending, render = RENDERERS.get(form, (form, None))
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for table, name in zip(tables, file_names(tables)):
            file = folder / f"{name}.{ending}"
            if render is None:
                write_whole(file, partial(write_parquet, table))
            else:
                write_text(file, render(table).rstrip("\n") + "\n")
            note(f"written to {file}")


def show_json(document: dict[str, Any]) -> None:
    """Prints one JSON document."""
    click.echo(json.dumps(document, indent=1, allow_nan=False))


def say(text: str, err: bool = False) -> None:
    """Sentences for people; on a terminal a line ends between words, as it does in tables' notes."""
    if (sys.stderr if err else sys.stdout).isatty():
        width = shutil.get_terminal_size().columns
        wrap = partial(textwrap.fill, width=width, break_long_words=False, break_on_hyphens=False)
        text = "\n".join(map(wrap, text.split("\n")))
    click.echo(text, err=err)


def tell(text: str, output: Output) -> None:
    """Sentences that belong to the tables: with them, or beside an export, which a program reads."""
    say(text, err=output.form != "text")


def note(line: str) -> None:
    """A line for people, beside the output."""
    say(line, err=True)


EVERY = 60.0
"""Seconds between two lines of progress, where no bar can be."""


@contextmanager
def progress_bar(doing: str = "attacking") -> Iterator[Progress]:
    """A live bar on a terminal's stderr; elsewhere, as in a log, a line a minute."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    from bench.session import Progress

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal, expand=True) as bar:
        line = bar.add_task("planning", total=None)
        begun = told = time.monotonic()

        def update(what: str, **changes: Any) -> None:
            nonlocal told
            bar.update(line, description=f"{what:<40}"[:40], **changes)
            now = time.monotonic()
            if bar.disable and now - told >= EVERY:
                told, done = now, bar.tasks[line]
                note(f"{what}: {done.completed:.0f} of {done.total:.0f} after {duration(now - begun)}")

        def begin(total: int, done: int) -> None:
            bar.update(line, total=total, completed=done, description=doing)

        def advance(task: Any, samples: int) -> None:
            cell = task.cell
            update(f"{cell.model} {cell.attack} {cell.threat}", advance=samples)

        def waiting() -> None:
            note("what is left is with other processes; waiting for them")

        def certify(what: str, done: int, total: int) -> None:
            update(what, total=total, completed=done)

        yield Progress(begin, advance, waiting, certify)
