"""Tables as other programs read them, and RobustBench's model info both ways."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pandas as pd
import pyarrow.parquet
import pytest

from bench.cli import VERBS, app
from bench.metrics import rate
from bench.render.table import Table, as_csv, as_latex, file_names, percent, plain, printed, write_parquet
from tests.conftest import Answer

Cli = Callable[..., Answer]

RUN = ("run", "--model", "cifar_cnn@fgsm_at", "--attack", "fgsm", "--samples", "8", "--eps")
ODD = r"50%_of{a}\b$1^2~#&<|>, [n–m] ×"
TABLE = Table(
    "mnist · linf(0.1) · 200 of 10000 test images · clean 98.0 %",
    ("model", "robust %", "distance", "n", "p", "change", "weights", "left over"),
    (
        (
            'a, "b"',
            percent(rate(150, 200)),
            "0.112 [0.105–∞]",
            "10 000",
            "1e-05",
            "+0.4 [-0.2 to +1.1]",
            "1e5",
            "–",
        ),
        (ODD, "–", "∞", "–", "0.5", "−1.5", "007", "–"),
        ("[first]", "59.53", "0.110", "7", "1", "–", "NA", "–"),
    ),
    "a note of 95 %",
    frozenset({"model", "weights"}),
)
FIGURES = {
    "robust %": [75.0, math.nan, 59.53],
    "robust % low": [68.6, math.nan, math.nan],
    "robust % high": [80.5, math.nan, math.nan],
    "distance": [0.112, math.inf, 0.11],
    "distance low": [0.105, math.nan, math.nan],
    "distance high": [math.inf, math.nan, math.nan],
    "n": [10000, math.nan, 7],
    "p": [1e-5, 0.5, 1],
    "change": [0.4, -1.5, math.nan],
    "change low": [-0.2, math.nan, math.nan],
    "change high": [1.1, math.nan, math.nan],
    "left over": [math.nan] * 3,
}


def _check(found: pd.DataFrame) -> None:
    assert list(found) == ["model", *[c for c in FIGURES if c != "left over"], "weights", "left over"]
    assert list(found["model"]) == [row[0] for row in TABLE.rows]
    assert list(found["weights"]) == ["1e5", "007", "NA"], "words are no numbers"
    for name, values in FIGURES.items():
        assert found[name].astype(float).tolist() == pytest.approx(values, nan_ok=True), name


def test_csv_read_back_is_the_table() -> None:
    words = {"model": str, "weights": str}
    read = {"dtype": words, "keep_default_na": False, "na_values": {name: [""] for name in FIGURES}}
    _check(pd.read_csv(io.StringIO(as_csv(TABLE)), **read))


def test_parquet_read_back_is_the_table(tmp_path: Path) -> None:
    file = tmp_path / "table.parquet"
    write_parquet(TABLE, file)
    found = pyarrow.parquet.read_table(file)
    _check(found.to_pandas())
    assert found.schema.metadata == {b"title": TABLE.title.encode(), b"note": TABLE.note.encode()}
    assert found.schema.field("n").type == "int64"


def test_a_table_of_no_rows_is_written(tmp_path: Path) -> None:
    empty = Table("none", ("model", "n"), ())
    write_parquet(empty, tmp_path / "none.parquet")
    assert pd.read_parquet(tmp_path / "none.parquet").shape == (0, 2)
    assert as_csv(empty) == "model,n\n"


def test_a_column_with_a_word_in_it_is_left_as_it_is() -> None:
    mixed = Table("t", ("model", "time"), (("a", "8 s"), ("b", "3.0 [2.0–4.0]")))
    assert plain(mixed).rows == mixed.rows
    shown = Table("t", ("model", "on b"), (("a", "50.0 [10.0–90.0] n=4"), ("b", "–")))
    assert plain(shown).columns == ("model", "on b", "on b low", "on b high", "on b n")
    assert plain(shown).rows == (("a", "50.0", "10.0", "90.0", "4"), ("b", "", "", "", ""))


def _latex_cells(line: str) -> list[str]:
    return re.split(r"(?<!\\)&", line.removesuffix(r"\\"))


def test_latex_is_escaped_and_aligned() -> None:
    lines = as_latex(TABLE).splitlines()
    (begin,) = (line for line in lines if line.startswith(r"\begin{tabular}"))
    assert begin == r"\begin{tabular}{lr@{ }lr@{ }lrrr@{ }llr}"
    columns = 11
    rules = [lines.index(rf"\{rule}") for rule in ("toprule", "midrule", "bottomrule")]
    assert rules == sorted(rules)
    (head,) = lines[rules[0] + 1 : rules[1]]
    assert len(_latex_cells(head)) + head.count(r"\multicolumn{2}") == columns
    body = lines[rules[1] + 1 : rules[2]]
    assert [len(_latex_cells(line)) for line in body] == [columns] * 3
    first = [cell.strip() for cell in _latex_cells(body[0])]
    assert first[1:3] == ["75.0", "[68.6--80.5]"], "the interval is kept, beside its value"
    assert first[7:9] == ["0.4".join(["+", ""]), "[$-$0.2 to +1.1]"]
    assert body[2].startswith("{}["), "or the end of the line before takes it for a length"
    assert body[1].startswith(
        r"50\%\_of\{a\}\textbackslash{}b\$1\textasciicircum{}2\textasciitilde{}\#\&"
        r"\textless{}\textbar{}\textgreater{}, [n--m] $\times$ & -- &"
    )
    bare = re.sub(r"\\[%&_#{}$]|\$\\?[\w-]+\$", "", "\n".join(lines))
    assert not set("%#^~$") & set(bare)
    assert "\n" not in as_latex(Table("a\nb", ("model",), ())).splitlines()[2]


def test_several_tables_in_one_output() -> None:
    two = [TABLE, Table("b, c", ("model",), (("x",),))]
    assert printed([TABLE], "csv") + "\n" == as_csv(TABLE)
    parts = printed(two, "csv").split("\n\n")
    assert parts[0].startswith("mnist · linf(0.1) · 200")
    assert parts[1] == '"b, c"\nmodel\nx'
    assert printed(two, "latex").count(r"\begin{table}") == 2
    twice = Table("../c/d.py:f", (), ())
    assert file_names([TABLE, twice, twice]) == ["mnist-linf-0.1", "c-d.py-f", "c-d.py-f-2"]


def test_every_format_of_a_verb(cli: Cli, tmp_path: Path) -> None:
    document = cli("list", "datasets", "--json").json
    assert cli("list", "datasets", "--format", "json").json == document
    found = pd.read_csv(io.StringIO(cli("list", "datasets", "--csv").out), dtype=str, keep_default_na=False)
    assert found.to_dict("records") == document["datasets"]
    assert cli("list", "datasets", "--format", "markdown").out.startswith("### datasets\n\n| dataset |")
    assert r"\toprule" in cli("list", "datasets", "--format", "latex").out
    folder = tmp_path / "tables"
    answer = cli("list", "--format", "parquet", "--tables", str(folder))
    assert (answer.code, answer.out) == (0, "")
    assert {file.name for file in folder.iterdir()} == {
        f"{name}.parquet" for name in ("models", "attacks", "datasets", "transforms")
    }
    assert list(pd.read_parquet(folder / "datasets.parquet")["dataset"]) == list(found["dataset"])
    cli("list", "transforms", "--tables", str(folder))
    assert (folder / "transforms.txt").read_text() == cli("list", "transforms").out


def test_every_verb_that_prints_tables_exports_them() -> None:
    for name in VERBS:
        taken = {option.name for option in app.get_command(click.Context(app), name).params}
        # Pages and pictures are no tables; what `figures` lists is where the pictures are.
        assert ({"form", "tables"} <= taken) == (name not in ("report", "figures")), name


@pytest.mark.parametrize(
    ("words", "tables", "columns"),
    [
        (("data",), 1, {"dataset", "file", "state", "path"}),
        (("status", "latest"), 2, {"run", "state", "done", "driver", "attack", "samples"}),
        (("clean", "latest", "--dry-run"), 1, {"run", "what", "size", "why"}),
        (("verify", "latest"), 2, {"success % low", "success again", "robust % low", "robust again", "n"}),
        ((*RUN, "8/255", "--dry-run"), 1, {"attack", "shards", "missing", "time"}),
        (("timing", "--epochs", "1", "--passes", "1", "--images", "64"), 1, {"epoch s", "training ratio"}),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_a_verb_prints_as_csv_is_tables_and_nothing_else(
    cli: Cli, tmp_path: Path, words: tuple[str, ...], tables: int, columns: set[str]
) -> None:
    if "latest" in words:
        cli("run", "--model", "mnist_bnn", "--attack", "fgsm", "--samples", "8", "--workers", "1")
    answer = cli(*words, "--format", "csv")
    assert answer.code == 0, answer.err
    parts = answer.out.split("\n\n")
    assert len(parts) == tables
    bodies = parts if tables == 1 else [part.partition("\n")[2] for part in parts]
    read = [pd.read_csv(io.StringIO(body)) for body in bodies]
    assert all(len(found) for found in read)
    assert columns <= {column for found in read for column in found}
    assert cli(*words, "--format", "parquet", "--tables", str(tmp_path / "t")).out == ""
    assert len(list((tmp_path / "t").iterdir())) == tables


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--format", "parquet"), "--tables"),
        (("--format", "csv", "--json"), "one format at a time: --format csv, or --format json"),
        (("--csv", "--json"), "one format at a time"),
        (("--json", "--tables", "x"), "--tables"),
        (("--format", "xlsx"), "xlsx"),
    ],
)
def test_a_format_that_cannot_be(cli: Cli, tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    for verb in (("list",), ("run", "--model", "mnist_bnn"), ("show", "mnist_bnn"), ("leaderboard",)):
        answer = cli(*verb, *words)
        assert answer.code == 2
        assert told in answer.complaint
    assert not (tmp_path / "results").exists()


def _model_info(**changed: Any) -> str:
    info = {
        "link": "https://example.org",
        "name": "A Defence\n",
        "authors": "A. Author",
        "additional_data": True,
        "number_forward_passes": 1,
        "dataset": "cifar10",
        "venue": "Venue 2020",
        "architecture": "WideResNet-28-10",
        "eps": "8/255",
        "clean_acc": "90.25",
        "reported": "",
        "autoattack_acc": "55.50",
    }
    return json.dumps({**info, **changed})


@pytest.fixture
def board(tmp_path: Path) -> Path:
    folder = tmp_path / "model_info" / "cifar10" / "Linf"
    folder.mkdir(parents=True)
    return folder


def test_what_robustbench_published_stands_below_and_is_not_ranked(cli: Cli, board: Path) -> None:
    cli(*RUN, "8/255", "--workers", "1")
    (board / "Author2020Defence.json").write_text(_model_info())
    (board / "Other2021Attacked.json").write_text(
        _model_info(eps=8 / 255, autoattack_acc="70", external=60.5, unreliable=True)
    )
    corruptions = board.parent / "corruptions"
    corruptions.mkdir()
    (corruptions / "Third.json").write_text(json.dumps({"clean_acc": "90", "corruptions_acc": "70"}))
    l2 = board.parent / "L2"
    l2.mkdir()
    (l2 / "Fourth.json").write_text(_model_info(eps="0.5", autoattack_acc=1))

    words = ("leaderboard", "--reference", str(board.parent.parent))
    alone = cli("leaderboard", "--json").json
    found = cli(*words, "--json").json
    assert found["entries"] == alone["entries"], "nothing of theirs is an entry"
    assert [(r["model"], r["robust_percent"], r["measured_by"]) for r in found["references"]] == [
        ("Other2021Attacked", 60.5, "external"),
        ("Author2020Defence", 55.5, "AutoAttack"),
        ("Fourth", 1.0, "AutoAttack"),
    ]
    shown = cli(*words, "--threat", "linf(8/255)", "--format", "csv").out
    rows = pd.read_csv(io.StringIO(shown))
    assert list(rows["model"]) == [
        "cifar_cnn@fgsm_at",
        "RobustBench: Other2021Attacked",
        "RobustBench: Author2020Defence",
    ]
    assert rows["rank"].tolist() == pytest.approx([1, math.nan, math.nan], nan_ok=True)
    assert rows["robust %"].tolist()[1:] == [60.5, 55.5]
    assert rows["robust % low"].isna().tolist() == [False, True, True]
    assert all("not measured here" in flags for flags in rows["flags"][1:])
    assert "marked unreliable" in rows["flags"][1]
    written = board.parents[2] / "results" / "leaderboards"
    assert "RobustBench" not in (written / "leaderboard.md").read_text()
    assert json.loads((written / "leaderboard.json").read_text()) == alone


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"clean_acc": ', "damaged"),
        ("[" * 100_000, "damaged"),
        ("[]", "no model info"),
        ('{"model": "mnist_cnn"}', "no model info"),
        (_model_info(clean_acc="NaN"), "clean_acc"),
        (_model_info(clean_acc=True), "clean_acc"),
        (_model_info(autoattack_acc=None), "autoattack_acc"),
        (_model_info(autoattack_acc="155"), "autoattack_acc"),
        (_model_info(external="high"), "external"),
        (_model_info(eps="8"), "eps"),
        (_model_info(eps=None), "eps"),
        (_model_info(dataset=5), "dataset"),
    ],
)
def test_a_reference_that_is_none(cli: Cli, board: Path, text: str, told: str) -> None:
    (board / "Odd.json").write_text(text)
    answer = cli("leaderboard", "--reference", str(board))
    assert answer.code == 2
    assert "Odd.json" in answer.complaint
    assert told in answer.complaint
    assert not (board.parents[2] / "results").exists()


def test_references_without_a_threat_model(cli: Cli, board: Path, tmp_path: Path) -> None:
    assert "no model info" in cli("leaderboard", "--reference", str(board)).complaint
    (tmp_path / "Odd.json").write_text(_model_info())
    assert "Linf or L2" in cli("leaderboard", "--reference", str(tmp_path / "Odd.json")).complaint
    (board / "Odd.json").write_bytes(b"\xff\xfe\x00")
    assert "damaged" in cli("leaderboard", "--reference", str(board / "Odd.json")).complaint
    assert cli("leaderboard", "--reference", str(tmp_path / "nowhere")).code == 2


def test_an_entry_as_robustbench_has_it(cli: Cli, board: Path) -> None:
    cli(*RUN, "8/255,2/255", "--workers", "1")
    words = ("leaderboard", "--robustbench", "cifar_cnn@fgsm_at")
    several = cli(*words)
    assert several.code == 2
    assert "--threat 'linf(2/255)'" in several.complaint
    answer = cli(*words, "--threat", "linf(8/255)")
    (entry,) = (e for e in cli("leaderboard", "--json").json["entries"] if e["eps"] == pytest.approx(8 / 255))
    info = answer.json
    assert list(info) == [*json.loads(_model_info()), "footnote"], "their fields, in their order"
    assert info["clean_acc"] == f"{100 * entry['clean_accuracy']['value']:.2f}"
    assert info["reported"] == f"{100 * entry['robust_accuracy']['value']:.2f}"
    assert (info["dataset"], info["eps"], info["additional_data"]) == ("cifar10", "8/255", False)
    assert info["autoattack_acc"] is None, "it was not AutoAttack that measured it"
    assert "n = 8" in info["footnote"]
    assert "without standard" in info["footnote"]
    assert "no leaderboard" not in answer.err
    assert "has no leaderboard for cifar10 linf(2/255)" in cli(*words, "--threat", "linf(2/255)").err
    # Once their evaluation has filled its field, it is read as one of theirs.
    (board / "Ours2026.json").write_text(json.dumps({**info, "autoattack_acc": "30.0"}))
    (theirs,) = cli("leaderboard", "--reference", str(board), "--json").json["references"]
    assert (theirs["clean_percent"], theirs["robust_percent"]) == (float(info["clean_acc"]), 30.0)
    assert "nope" in cli("leaderboard", "--robustbench", "nope").complaint
    assert "--format" in cli(*words, "--format", "csv").complaint
