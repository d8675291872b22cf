"""The command line: a file per verb, imported when the verb is asked for."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

from adversarial_bench import __version__
from adversarial_bench.errors import UserError, unknown

VERBS = {
    "run": "Attack models and show how robust they are.",
    "list": "List models, attacks and datasets.",
    "show": "Describe a model: layers, training, test accuracy.",
    "figures": "Draw a model: its training, what it sees, what fools it.",
    "audit": "Check whether a model's gradient can be believed.",
    "train": "Train a model of the zoo.",
    "transfer": "Show one model's adversarial images to another.",
    "compare": "Compare models on the same images, with paired tests and a figure.",
    "speed": "Race the same attack by this engine and by other libraries.",
    "timing": "Measure training and inference time of two models.",
    "leaderboard": "Write the leaderboards from stored runs.",
    "report": "Write what the store holds as pages to look at.",
    "status": "Show what of the stored runs is done, under way or missing.",
    "clean": "Remove stored runs that are old, unfinished or outdated.",
    "verify": "Recompute a run, or a file of images, from the images alone.",
    "data": "List, fetch and verify datasets.",
}


class Verbs(click.Group):
    """The verbs by name; `bench --help` imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            raise unknown("verb", name, VERBS, "bench --help")
        command: click.Command = importlib.import_module(f"bench.cli.verbs.{name}").command
        # In each file the function has the same name.
        command.name = name
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="bench")
@click.option("--debug", is_flag=True, help="Show the traceback of an error. Goes anywhere on the line.")
def app(debug: bool) -> None:
    """How robust is an image classifier, really?

    \b
    bench run --model mnist_bnn --attack all     the main job
    bench run --help                             every option of a verb
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command line; exits with 0, 1 (ran, something failed) or 2 (a bad request)."""
    # As samples leave a batch it has every size in turn, and oneDNN keeps code for a thousand shapes:
    # 64 take 0.4 GB less in each process, and no more time.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [word for word in given if word != "--debug"]
    try:
        sys.exit(app.main(given, prog_name="bench", standalone_mode=False) or 0)
    except (UserError, click.ClickException) as error:
        if debug:
            raise
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        _fail(message, getattr(error, "exit_code", 2))
    except (KeyboardInterrupt, click.Abort):
        if debug:
            raise
        _fail("interrupted; what was finished is stored, and the same command goes on from there", 1)
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; nothing is wrong.
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        if debug:
            raise
        _fail(f"{type(error).__name__}: {error} (unexpected; --debug shows where)", 1)


def _fail(message: str, code: int) -> None:
    click.echo("bench: error: " + " ".join(message.split()), err=True)
    sys.exit(code)
