"""Tables and progress in a terminal: no wider than it is, nothing lost, and plain text through a pipe."""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from bench.cli import common
from bench.metrics import rate
from bench.render.table import Table, percent
from bench.render.terminal import print_tables
from tests.conftest import Answer

BENCH = [sys.executable, "-W", "ignore", "-c", "from bench.cli import main; main()"]
CODES = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07)")
FLAGS = "without standard; zero gradient: 45%; 2 attacks fewer than others"
BOARD = Table(
    "mnist · linf(0.1)",
    ("rank", "model", "clean %", "robust %", "audit", "n", "attacks", "strongest", "weights", "flags"),
    tuple(
        (
            str(rank),
            model,
            percent(rate(991, 1000)),
            percent(rate(1000 - rank, 1000)),
            "amber; green with surrogate=tanh",
            "1000",
            "83",
            "native/apgd_ce:restarts=5",
            "0123456789ab",
            FLAGS if rank > 1 else "",
        )
        for rank, model in enumerate(("mnist_cnn@pgd_at", "mnist_cnn+bitdepth3+jpeg50"), start=1)
    ),
    "a note",
    frozenset({"model", "audit", "strongest", "weights", "flags"}),
    minor=("weights", "attacks"),
)
MATRIX = Table(
    "transfer",
    ("made on", *(f"model_{i}" for i in range(6))),
    tuple((f"model_{i}", *(f"{percent(rate(i + j, 20))} n=20" for j in range(6))) for i in range(6)),
    left=frozenset({"made on"}),
)


def shown(table: Table, width: int) -> list[str]:
    stream = io.StringIO()
    print_tables([table], Console(width=width, file=stream, force_terminal=True, color_system=None))
    lines = stream.getvalue().splitlines()
    assert max(map(cell_len, lines)) <= width
    return lines


def test_a_table_with_room_is_one_block_and_whole() -> None:
    lines = shown(BOARD, 250)
    assert lines[0] == BOARD.title
    assert lines[1].split() == " ".join(BOARD.columns).split()
    assert len(lines) == 1 + 2 + 2 + 2
    for row, line in zip(BOARD.rows, lines[3:]):
        assert re.split(r" {2,}", line.strip()) == [cell for cell in row if cell]
    assert lines[-2].strip() == "a note"


def test_minor_columns_give_way_and_are_named() -> None:
    lines = shown(BOARD, 160)
    assert not {"weights", "attacks"} & set(lines[1].split())
    assert "a note; a wider terminal or --format csv shows also: attacks, weights" in lines


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("table", [BOARD, MATRIX], ids=lambda table: table.title)
def test_what_does_not_fit_goes_on_below_beside_the_same_names(table: Table, width: int) -> None:
    lines = shown(table, width)
    names = 1 + table.columns.index(next(iter(c for c in table.columns if c in ("model", "made on"))))
    heads = [re.split(r" {2,}", line.strip()) for line in lines if line.lstrip().startswith(table.columns[0])]
    assert len(heads) > 1
    assert all(tuple(head[:names]) == table.columns[:names] for head in heads)
    assert [c for head in heads for c in head[names:]] == [
        c for c in table.columns[names:] if c not in table.minor
    ]
    text = "\n".join(lines)
    for row in table.rows:
        for column, cell in zip(table.columns, row):
            if column not in (*table.minor, *table.left):
                assert cell in text, "a figure stays in one piece"
        assert row[names - 1] in text
    if table is BOARD:
        wrapped = re.sub(r"\s+", " ", " ".join(line[-width // 2 :] for line in lines))
        assert "standard;" in wrapped


def test_a_block_below_leaves_out_rows_that_have_nothing_in_it() -> None:
    lines = shown(BOARD, 60)
    flags = next(i for i, line in enumerate(lines) if line.rstrip().endswith("flags"))
    assert "bitdepth3" in lines[flags + 2]
    assert not any("pgd_at" in line for line in lines[flags:])
    runs = Table("runs", ("run", "state", "driver"), (("r" * 25, "s" * 25, ""),))
    assert [line.split() for line in shown(runs, 58)[1:2]] == [["run", "state"]]
    assert not any("driver" in line for line in shown(runs, 58)), "nor is there a block of none"


def test_a_word_longer_than_the_terminal_is_cut_and_not_lost() -> None:
    path = "/" + "0123456789" * 15
    table = Table("data", ("file", "path"), (("a.gz", path),), left=frozenset({"file", "path"}))
    assert path in re.sub(r"\s", "", "".join(shown(table, 60)[3:])).replace("a.gz", "")


def in_terminal(width: int, folder: Path, *words: str) -> list[str]:
    """What a terminal of this width is told by a verb, line by line, without codes for colours and cursor."""
    fcntl = pytest.importorskip("fcntl", reason="terminals are Unix's")
    import pty
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    env = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    env |= {"TERM": "xterm-256color", "BENCH_RESULTS": str(folder)}
    with subprocess.Popen([*BENCH, *words], stdin=theirs, stdout=theirs, stderr=theirs, env=env) as started:
        os.close(theirs)
        told = bytearray()
        # At its end Linux reports an error where others report nothing.
        try:
            while part := os.read(ours, 65536):
                told += part
        except OSError:
            pass
    os.close(ours)
    assert started.returncode == 0, told.decode()
    return re.split(r"[\r\n]+", CODES.sub("", told.decode()))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A store, and what a terminal of 60 columns was told while it was made."""
    folder = tmp_path_factory.mktemp("store")
    words = ("run", "--model", "mnist_bnn,mnist_cnn+bitdepth3", "--attack", "fgsm,pgd:steps=3,ink")
    return folder, in_terminal(60, folder, *words, "--samples", "20", "--workers", "1")


def test_progress_and_tables_keep_within_a_narrow_terminal(store: tuple[Path, list[str]]) -> None:
    assert any("0:00:" in line for line in store[1]), "there was a bar"
    assert max(cell_len(line) for line in store[1] if not line.startswith("/")) <= 60
    assert any(line.startswith("stored in") for line in store[1]), "a path alone may be longer"


@pytest.mark.parametrize("width", [80, 160])
def test_a_leaderboard_in_a_terminal(store: tuple[Path, list[str]], width: int) -> None:
    lines = [line for line in in_terminal(width, store[0], "leaderboard") if not line.startswith("/")]
    assert max(map(cell_len, lines)) <= width
    text = "\n".join(lines)
    assert text.count("mnist_cnn+bitdepth3") == 2 * (1 if width == 160 else 2)


def test_a_log_has_a_line_of_progress_a_minute(
    cli: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("run", "--model", "mnist_bnn", "--attack", "fgsm,ink", "--samples", "20", "--workers", "1")
    assert " of 40 after " not in cli(*words).err, "it took less"
    monkeypatch.setattr(common, "EVERY", 0.0)
    answer = cli(*words, "--seed", "1", "--json")
    lines = [line for line in answer.err.splitlines() if re.search(r": (20|40) of 40 after \d+ s$", line)]
    assert [line.split(":")[0] for line in lines] == [
        "mnist_bnn native/fgsm linf(0.1)",
        "mnist_bnn native/ink ink",
    ]
    assert answer.json["cells"], "it is beside the output, not in it"


def test_through_a_pipe_there_are_no_codes_and_no_widths(store: tuple[Path, list[str]]) -> None:
    env = {**os.environ, "COLUMNS": "40", "BENCH_RESULTS": str(store[0]), "TERM": "xterm-256color"}
    piped = subprocess.run([*BENCH, "leaderboard"], env=env, capture_output=True, text=True, check=True)
    assert "\x1b" not in piped.stdout + piped.stderr
    heads = [line for line in piped.stdout.splitlines() if line.startswith("rank")]
    assert len(heads) == 2
    assert all(head.split()[-1] == "flags" and "weights" in head for head in heads)
