"""The main job end to end: its document, its folder, its resume, its crashes, its bad input."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import bench
from adversarial_bench.errors import UnknownNameError
from attacks.core import ParameterError
from attacks.registry import select
from bench.metrics import rate
from bench.plan import slice_ids
from bench.render.figure import transfers
from bench.runner import load_model
from bench.store import RunFolder
from bench.views import transfer_findings
from tests.conftest import Answer

Cli = Callable[..., Answer]
QUICK = ("--samples", "40", "--workers", "1")

CRASHING = """
import torch
from torch import nn

class Crashing(nn.Module):
    '''Right on every bright image and dark one, but raises when a gradient is asked of a bright one.'''
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
        torch.manual_seed(0)
        nn.init.normal_(self.net[1].weight)
    def forward(self, x):
        if x.requires_grad and x.detach().flatten(1).mean(1).max() > 0.13:
            raise RuntimeError("a bright image")
        return self.net(x)

def build():
    return Crashing()
"""
MANY = (
    "fgsm,pgd,pgd_l2,apgd_ce,apgd_dlr,apgd_ce_l2,apgd_dlr_l2,square,square_l2,ink,ink_target,mse_target,noise,"
    "logit_ascent"
)
"""Attacks enough to be interrupted among."""


def cell(document: Any, attack: str, **more: object) -> dict[str, Any]:
    found = [
        c for c in document["cells"] if c["attack"] == attack and all(c[k] == v for k, v in more.items())
    ]
    assert len(found) == 1
    return dict(found[0])


def strip(document: dict[str, Any]) -> dict[str, Any]:
    """A document without what may differ between two equal runs."""
    for entry in document["cells"]:
        entry.pop("seconds")
    document.pop("path")
    return document


def test_the_document_and_the_folder_keep_their_contract(cli: Cli, tmp_path: Path) -> None:
    answer = cli("run", "--model", "mnist_bnn", "--attack", "pgd,ink,foolbox/ddn", "--json", *QUICK)
    assert answer.code == 0
    found = answer.json
    assert found["schema"] == 1
    entry = cell(found, "native/pgd")
    promised = (
        "model attack threat eps goal dataset n status clean_accuracy robust_accuracy attack_success_rate "
        "confidence_fooled confident_share median_distance norm forwards_per_sample backwards_per_sample "
        "seconds flags"
    )
    assert set(promised.split()) <= set(entry)
    assert set(entry["robust_accuracy"]) == {"value", "low", "high", "n"}
    assert (entry["threat"], entry["eps"], entry["norm"], entry["n"]) == ("linf(0.1)", 0.1, "linf", 40)
    assert entry["flags"] == ["partial sample: 40 of 10000"]
    assert {w["threat"] for w in found["worst_case"]} == {"linf(0.1)", "l2(1.5)", "ink"}
    assert found["worst_case"][0]["robust_accuracy"]["value"] == 0.0

    folder = Path(found["path"])
    assert (folder / "run.json").exists()
    shard = next(f for f in folder.glob("samples/*.parquet") if pd.read_parquet(f)["linf"].max() > 0.11)
    frame = pd.read_parquet(shard)
    promised = (
        "sample_id label target clean_label clean_confidence adv_label adv_confidence success feasible "
        "violation l0 l1 l2 linf forwards backwards steps status"
    )
    assert set(promised.split()) <= set(frame.columns)
    stored = load_file(folder / "adv" / f"{shard.stem}.safetensors")
    assert {"images", "sample_id", "label", "target"} <= set(stored)
    assert stored["images"].shape == (40, 1, 28, 28)
    assert stored["sample_id"].tolist() == frame["sample_id"].tolist() == slice_ids("mnist", 10_000, 40)


def test_slices_nest_whether_all_of_the_test_set_is_here_or_not() -> None:
    whole = slice_ids("cifar10", 10_000, 10_000)
    assert sorted(whole) == list(range(10_000))
    assert sorted(whole[:1000]) == list(range(1000)), "the packaged images come first"
    assert slice_ids("cifar10", 1000, 300) == whole[:300] == slice_ids("cifar10", 10_000, 300)
    assert whole[:1000] != sorted(whole[:1000])


def test_images_that_are_not_here_are_named(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    words = ("run", "--model", "cifar_vgg", "--attack", "pgd", "--samples")
    assert "`bench data fetch cifar10` gets the others" in cli(*words, "1001").complaint
    assert "from 1 to 10000" in cli(*words, "10001").complaint
    audit = cli("audit", "cifar_vgg", "--samples", "1001")
    assert "1000 of 10000 are here" in audit.complaint


def test_ink_holds_exactly_in_what_is_stored(cli: Cli, mnist: tuple[Tensor, Tensor]) -> None:
    found = cli("run", "--model", "mnist_relu", "--attack", "ink*", "--json", "--no-transfer", *QUICK).json
    for file in Path(found["path"]).glob("adv/*.safetensors"):
        stored = load_file(file)
        delta = stored["images"] - mnist[0][stored["sample_id"]]
        assert float(delta.min()) == 0.0
        values = delta.unique()
        if len(values) == 2:
            assert values.tolist() == [0.0, 0.625]
            break
    else:
        pytest.fail("ink_binary left no perturbation of exactly two values")


def test_the_judge_and_the_table_agree_with_the_images(
    cli: Cli, mnist: tuple[Tensor, Tensor], relu: nn.Module
) -> None:
    found = cli("run", "--model", "mnist_relu", "--attack", "pgd", "--eps", "0.1", "--json", *QUICK).json
    stored = load_file(next(Path(found["path"]).glob("adv/*.safetensors")))
    x, y = mnist[0][stored["sample_id"]], mnist[1][stored["sample_id"]]
    with torch.no_grad():
        right, after = relu(x).argmax(1) == y, relu(stored["images"]).argmax(1) == y
    entry = cell(found, "native/pgd")
    assert entry["clean_accuracy"]["value"] == pytest.approx(float(right.float().mean()))
    assert entry["robust_accuracy"]["value"] == pytest.approx(float((right & after).float().mean()))
    success = float((right & ~after).sum() / right.sum())
    assert entry["attack_success_rate"]["value"] == pytest.approx(success, abs=1e-6)
    assert 0.0 < success < 1.0
    assert float((stored["images"] - x).abs().max()) <= 0.1 + 1e-6


def test_the_same_command_computes_nothing_twice(cli: Cli) -> None:
    words = ("run", "--model", "mnist_bnn", "--attack", "fgsm,logit_ascent", *QUICK)
    first, second = cli(*words), cli(*words)
    assert "2 shards computed, 0 taken" in first.err
    assert "0 shards computed, 2 taken" in second.err
    assert first.out == second.out
    # Another request that shares a cell takes it from the store.
    third = cli("run", "--model", "mnist_bnn", "--attack", "fgsm,fgsm_mse", *QUICK)
    assert "1 shards computed, 1 taken" in third.err
    # One that finds everything there is a finished run too.
    fourth = cli("run", "--model", "mnist_bnn", "--attack", "fgsm", "--json", *QUICK).json
    assert RunFolder(Path(fourth["path"]).parent.parent, fourth["run"]).finished()


def test_workers_and_threads_change_no_figure(cli: Cli, tmp_path: Path) -> None:
    words = ("run", "--model", "mnist_bnn", "--attack", "pgd_l2,art/pgd,noise", "--json", "--samples", "150")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        alone = cli(*words, "--workers", "1").json
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    several = cli(*words, "--workers", "2", "--results", str(tmp_path / "b")).json
    pixels = [
        {file.name: file.read_bytes() for file in Path(document["path"]).glob("adv/*")}
        for document in (alone, several)
    ]
    assert pixels[0] == pixels[1], "to the last bit"
    assert strip(alone) == strip(several)


def test_the_same_command_twice_at_once_computes_each_shard_once(cli: Cli, tmp_path: Path) -> None:
    words = ("run", "--model", "mnist_bnn", "--attack", MANY, "--samples", "60", "--workers", "1")
    command = [sys.executable, "-c", "from bench.cli import main; main()", *words]
    command += ["--results", str(tmp_path / "shared")]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    answers = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert answers[0][0] == answers[1][0]
    computed = [int(re.findall(r"(\d+) shards computed", err)[0]) for _, err in answers]
    assert sum(computed) == len(select(MANY))


@pytest.mark.fault
@pytest.mark.parametrize("damage", ["cut rows", "flip rows", "cut images", "flip images", "lose images"])
def test_a_damaged_shard_is_computed_again(cli: Cli, damage: str) -> None:
    words = ("run", "--model", "mnist_bnn", "--attack", "pgd", "--json", *QUICK)
    before = strip(cli(*words).json)
    folder = Path(cli(*words).json["path"])
    kind, what = damage.split()
    file = next(folder.glob("samples/*.parquet" if what == "rows" else "adv/*.safetensors"))
    data = bytearray(file.read_bytes())
    if kind == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif kind == "flip":
        data[len(data) // 3] ^= 0x10
        file.write_bytes(data)
    else:
        file.unlink()
    again = cli(*(word for word in words if word != "--json"))
    assert "1 shards computed" in again.err
    assert strip(cli(*words).json) == before


@pytest.mark.fault
def test_a_record_that_was_changed_is_not_believed(cli: Cli) -> None:
    words = ("run", "--model", "mnist_bnn", "--attack", "pgd,fgsm", *QUICK)
    folder = Path(cli(*words, "--json").json["path"])
    receipt = next(file for file in folder.glob("shards/*") if "native/pgd" in file.read_text())
    receipt.write_text(receipt.read_text().replace("native/pgd", "native/pgb"))
    assert "is damaged" in cli("leaderboard").complaint
    assert "1 shards computed, 1 taken" in cli(*words).err
    document = folder / "run.json"
    whole = document.read_text()
    document.write_text(whole.replace(f'"{receipt.stem.partition("-")[0]}"', f'"{16 * "0"}"'))
    assert "no shard of 1 of its 2 cells" in cli("leaderboard").complaint
    assert "0 shards computed, 2 taken" in cli(*words).err
    assert json.loads(document.read_text())["cells"] == json.loads(whole)["cells"]
    assert cli("leaderboard").code == 0


def descendants(pid: int) -> list[int]:
    """The processes below one, on Linux; elsewhere none are found."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    below = [int(child) for child in children.read_text().split()] if children.exists() else []
    return below + [deeper for child in below for deeper in descendants(child)]


@pytest.mark.fault
@pytest.mark.parametrize(("how", "workers"), [(signal.SIGKILL, 2), (signal.SIGINT, 1), (signal.SIGINT, 2)])
def test_a_killed_run_goes_on_to_the_same_figures(
    cli: Cli, tmp_path: Path, how: signal.Signals, workers: int
) -> None:
    words = (
        "run",
        "--model",
        "mnist_bnn",
        "--attack",
        MANY,
        "--samples",
        "60",
        "--json",
        "--workers",
        "1",
    )
    whole = strip(cli(*words).json)
    other = tmp_path / "killed"
    command = [sys.executable, "-c", "from bench.cli import main; main()", *words, "--results", str(other)]
    command[-3] = str(workers)
    running = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A test runner started in the background ignores Ctrl-C, and its children with it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while len(list(other.glob("runs/*/shards/*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    workers_left = descendants(running.pid)
    assert len(workers_left) >= workers - 1
    os.kill(running.pid, how)
    _, err = running.communicate(timeout=60)
    stored = len(list(other.glob("runs/*/shards/*.json")))
    assert 3 <= stored < 12, "killed in mid-run"
    if how == signal.SIGINT:
        assert running.returncode == 1
        assert err.strip().splitlines() == [
            "bench: error: interrupted; what was finished is stored, and the same command goes on from there"
        ]
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}/exe").exists() for pid in workers_left) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in workers_left if Path(f"/proc/{pid}/exe").exists()], "nobody is left behind"
    resumed = cli(*words, "--results", str(other))
    assert strip(resumed.json) == whole
    assert not list(other.glob("runs/*/*/*.partial")) or how == signal.SIGKILL


def test_a_crash_is_an_error_and_never_robust(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "crashing.py"
    file.write_text(CRASHING)
    words = ("run", "--model", f"{file}:build", "--attack", "fgsm,foolbox/fgsm,noise", "--samples", "200")
    answer = cli(*words, "--json", "--workers", "1")
    assert answer.code == 1
    assert "crashed on some samples" in answer.err
    for attack in ("native/fgsm", "foolbox/fgsm"):
        entry = cell(answer.json, attack)
        rows = _rows(answer.json, attack)
        errors = rows[rows["status"] == "error"]
        right = rows[rows["clean_label"] == rows["label"]]
        assert entry["status"] == "error"
        assert 0 < len(errors) < len(right), "only the culprits are lost"
        assert errors["message"].str.contains("a bright image").all()
        assert not errors["success"].any()
        standing = ((right["status"] == "ok") & (right["adv_label"] == right["label"])).sum()
        assert entry["robust_accuracy"]["value"] == pytest.approx(standing / 200)
        assert entry["attack_success_rate"]["n"] == len(right) - len(errors)
        assert any(flag.startswith("error:") for flag in entry["flags"])
    plain = cli(*words, "--workers", "1")
    assert plain.code == 1
    assert "2 attacks crashed" in plain.out


@pytest.mark.fault
def test_what_crashed_is_tried_again(cli: Cli, tmp_path: Path) -> None:
    file, trouble = tmp_path / "passing.py", tmp_path / "trouble"
    file.write_text(
        CRASHING.replace(
            "if x.requires_grad", f"if x.requires_grad and __import__('os').path.exists({str(trouble)!r})"
        )
    )
    words = ("run", "--model", f"{file}:build", "--attack", "fgsm,noise", "--json", "--workers", "1")
    undisturbed = strip(cli(*words, "--results", str(tmp_path / "other")).json)
    trouble.touch()
    first = cli(*words)
    assert first.code == 1
    assert any(entry["status"] == "error" for entry in first.json["cells"])
    trouble.unlink()
    again = cli(*words)
    assert again.code == 0
    assert strip(again.json) == undisturbed


def _rows(document: Any, attack: str) -> pd.DataFrame:
    path = Path(document["path"])
    rows = RunFolder(path.parent.parent, path.name).rows()
    return rows[rows["attack"] == attack]


def test_targets(cli: Cli) -> None:
    answer = cli(
        "run", "--model", "mnist_relu", "--attack", "pgd", "--eps", "0.3", "--targets", "3", "--json", *QUICK
    )
    rows = _rows(answer.json, "native/pgd")
    assert cell(answer.json, "native/pgd")["goal"] == "targeted"
    assert (rows["target"] != rows["label"]).all()
    assert set(rows["target"]) == {3, 4}
    hit = rows[rows["success"]]
    assert len(hit) > 20
    assert (hit["adv_label"] == hit["target"]).all()


def test_attacks_without_a_targeted_form_are_left_out_by_name(cli: Cli) -> None:
    words = ("run", "--model", "mnist_relu", "--targets", "random", "--json", *QUICK)
    answer = cli(*words, "--attack", "fgsm,foolbox/deepfool_l2")
    assert [entry["attack"] for entry in answer.json["cells"]] == ["native/fgsm"]
    assert answer.json["cells"][0]["goal"] == "targeted"
    assert "left out, having no targeted form: foolbox/deepfool_l2" in answer.err
    alone = cli(*words, "--attack", "foolbox/deepfool_l2")
    assert alone.code == 2
    assert "no targeted form" in alone.complaint


def test_rows_of_weights_that_a_model_had_before_are_not_counted(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    words = ("run", "--model", f"{file}:build", "--attack", "fgsm", "--samples", "20", "--workers", "1")
    for seed in (1, 22):
        file.write_text(
            "import torch\n\n\ndef build():\n"
            f"    torch.manual_seed({seed})\n"
            "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))\n"
        )
        load_model.cache_clear()
        last = cli(*words, "--json").json
    folder = Path(last["path"])
    assert len(list((folder / "shards").glob("*.json"))) == 2, "one request, one folder"
    shown = cli("leaderboard", "--json").json["entries"][0]
    assert shown["robust_accuracy"] == last["worst_case"][0]["robust_accuracy"]
    assert RunFolder(folder.parent.parent, folder.name).rows()["cell"].nunique() == 1


def test_transfer_shows_the_images_that_fooled(cli: Cli, relu: nn.Module) -> None:
    answer = cli("run", "--model", "mnist_bnn", "--attack", "ink_binary,pgd", "--transfer", "--json", *QUICK)
    shown = {entry["attack"]: entry for entry in answer.json["transfer"]}
    assert (shown["native/ink_binary"]["source"], shown["native/ink_binary"]["model"]) == (
        "mnist_bnn",
        "mnist_relu",
    )
    rows = _rows(answer.json, "native/ink_binary")
    own, there = rows[rows["source"] == ""], rows[rows["source"] != ""]
    stored = load_file(Path(answer.json["path"]) / "adv" / f"{_shard(answer.json, own)}.safetensors")
    with torch.no_grad():
        label = relu(stored["images"]).argmax(1).numpy()
    counted = own["success"].to_numpy() & (there["clean_label"] == there["label"]).to_numpy()
    expected = (counted & (label != there["label"].to_numpy())).sum() / counted.sum()
    assert shown["native/ink_binary"]["fooled"]["value"] == pytest.approx(expected, abs=1e-6)
    assert shown["native/ink_binary"]["fooled"]["n"] == counted.sum()


def _shard(document: Any, rows: pd.DataFrame) -> str:
    return next(f.stem for f in Path(document["path"]).glob(f"samples/{rows['cell'].iloc[0]}-*.parquet"))


def test_a_transfer_is_made_anew_with_its_images(cli: Cli) -> None:
    words = ("run", "--model", "mnist_bnn", "--attack", "ink_binary", "--transfer", *QUICK)
    first = cli(*words, "--json").json
    assert "0 shards computed" in cli(*words).err
    folder = Path(first["path"])
    rows = _rows(first, "native/ink_binary")
    (folder / "adv" / f"{_shard(first, rows[rows['source'] == ''])}.safetensors").unlink()
    assert "2 shards computed" in cli(*words).err
    assert strip(cli(*words, "--json").json) == strip(first)


def test_the_transfer_matrix_has_every_pair(cli: Cli) -> None:
    answer = cli("transfer", "--models", "mnist_relu,mnist_bnn", "--attack", "ink,logit_ascent", *QUICK)
    assert answer.code == 0
    table = answer.out.split("\n\n")[0].splitlines()
    assert "native/ink" in table[0]
    assert [line.split()[0] for line in table[3:5]] == ["mnist_relu", "mnist_bnn"]
    assert all(line.count("n=") == 2 for line in table[3:5])


def test_the_transfer_matrix_is_drawn_as_a_heat_map(cli: Cli, tmp_path: Path) -> None:
    words = ("transfer", "--models", "mnist_relu,mnist_bnn", "--attack", "ink,logit_ascent", *QUICK)
    found = cli(*words, "--json", "--out", str(tmp_path / "drawn")).json
    assert [Path(file).suffix for file in found["figures"]] == [".png", ".svg"]
    assert all(Path(file).parent == tmp_path / "drawn" for file in found["figures"])
    assert cli(*words, "--json", "--no-figure").json["figures"] == []
    rates = {"ink": {"a": {"a": rate(9, 10), "b": None}, "b": {"a": rate(1, 4), "b": rate(0, 8)}}}
    drawn = transfers(rates, "caption").axes[0]
    assert [text.get_text().split("\n")[0] for text in drawn.texts] == ["90", "25", "0"]
    assert drawn.collections[0].get_array().filled(-1).ravel().tolist() == [90, -1, 25, 0]
    assert [label.get_text() for label in drawn.get_yticklabels()] == ["a", "b"]
    path = "/a/folder/of/some/depth/mine.py:build"
    drawn = transfers({"ink": {path: {path: rate(9, 10)}}}, "caption").axes[0]
    assert [label.get_text() for label in drawn.get_yticklabels()] == ["…ome/depth/mine.py:build"]


def test_a_transfer_page_says_what_its_matrix_says(cli: Cli, tmp_path: Path) -> None:
    words = ("transfer", "--models", "mnist_relu,mnist_bnn", "--attack", "ink", *QUICK, "--save", "shown")
    found = cli(*words, "--json").json
    folder = tmp_path / "results" / "leaderboards"
    assert {folder / f"shown.{form}" for form in ("png", "svg", "md")} == set(map(Path, found["figures"]))
    page = (folder / "shown.md").read_text()
    assert found["findings"]
    assert all(f"\n- {line}\n" in page for line in found["findings"])
    assert "![shown](shown.png)" in page
    assert "### native/ink · ink" in page
    assert all(line in cli(*words).out for line in found["findings"])


def test_a_network_that_others_images_fool_more_than_its_own_is_named() -> None:
    hidden = {"a": {"a": rate(90, 100), "b": rate(40, 85)}, "b": {"a": rate(5, 6), "b": rate(6, 100)}}
    said = "\n".join(transfer_findings({"pgd": hidden}))
    assert "b's own gradient misleads pgd: images made on a fool 40.0 [" in said
    assert "those made on itself 6.0 [" in said
    assert said.count("misleads") == 1, "few of a's own samples were shown to it, though most of these fell"


def test_noise_is_tried_as_a_universal_perturbation(cli: Cli) -> None:
    document = cli("run", "--model", "mnist_bnn", "--attack", "noise", "--json", *QUICK).json
    table = document["universal"][0]
    assert [row["label"] for row in table["images"]] == list(range(10))
    shown = [p for row in table["images"] for p in row["predicted"] if p is not None]
    fooled = sum(p is not None and p != row["label"] for row in table["images"] for p in row["predicted"])
    assert table["fooled"]["n"] == len(shown)
    assert table["fooled"]["value"] == pytest.approx(fooled / len(shown), abs=1e-6)


def test_evaluate_is_the_run_in_memory(cli: Cli, mnist: tuple[Tensor, Tensor], relu: nn.Module) -> None:
    document = cli("run", "--model", "mnist_relu", "--attack", "pgd", "--json", *QUICK).json
    stored = _rows(document, "native/pgd")
    ids = torch.tensor(slice_ids("mnist", 10_000, 40))
    rows = bench.evaluate(relu, "pgd", mnist[0][ids], mnist[1][ids], eps=0.1)
    assert len(rows) == 40
    assert {"model", "attack", "norm", "eps", "goal", "status", "success"} <= set(rows.columns)
    assert rows["clean_label"].tolist() == stored["clean_label"].tolist()
    # The seeds differ (sample ids 0…39 here), the verdicts hardly.
    assert abs(int(rows["success"].sum()) - int(stored["success"].sum())) <= 4


def test_evaluate_refuses_a_parameter_that_no_attack_has(
    mnist: tuple[Tensor, Tensor], relu: nn.Module
) -> None:
    few = (mnist[0][:2], mnist[1][:2])
    with pytest.raises(UnknownNameError, match="step_size"):
        bench.evaluate(relu, "pgd,fgsm", *few, eps=0.1, stepsize=0.1)
    rows = bench.evaluate(relu, "pgd,logit_ascent", *few, eps=0.1, noise_std=0.2, steps=2)
    assert set(rows["attack"]) == {"native/pgd", "native/logit_ascent"}
    with pytest.raises(ParameterError, match="needs eps"):
        bench.evaluate(relu, "ink,pgd", *few)


def test_evaluate_takes_any_callable(mnist: tuple[Tensor, Tensor], relu: nn.Module) -> None:
    rows = bench.evaluate(
        lambda x: relu(x), ["fgsm", "logit_ascent"], mnist[0][:8], mnist[1][:8], eps=[0.1, 0.3]
    )
    assert rows.groupby(["attack", "eps"], dropna=False).size().tolist() == [8, 8, 10] or len(rows) == 26
    targeted = bench.evaluate(
        relu, "pgd", mnist[0][:8], mnist[1][:8], eps=0.3, targets=(mnist[1][:8] + 1) % 10
    )
    assert (targeted["target"] == (targeted["label"] + 1) % 10).all()


NAN = (
    "import torch\nclass M(torch.nn.Module):\n"
    " def forward(self, x): return x.flatten(1)[:, :10] * float('nan')\n"
    "def build(): return M()\n"
)
SEVEN = "import torch\ndef build(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 7))\n"
SMALL = (
    "import torch\ndef build(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(100, 10))\n"
)
SOFTMAX = (
    "import torch\ndef build():\n torch.manual_seed(0)\n"
    " return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10), torch.nn.Softmax(1))\n"
)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--model", "mnist_bn"], "mnist_bnn"),
        (["--model", "mnist_bnn", "--attack", "pdg"], "did you mean pgd"),
        (["--model", "mnist_bnn", "--attack", "zzz*"], "bench list attacks"),
        (["--model", "mnist_bnn", "--dataset", "mnits"], "mnist"),
        (["--model", "mnist_bnn", "--attack", "pgd", "--param", "stepsize=1"], "step_size"),
        (["--model", "mnist_bnn", "--attack", "pgd", "--param", "steps"], "NAME=VALUE"),
        (["--model", "mnist_bnn", "--attack", "pgd", "--param", "steps=many"], "whole number"),
        (["--model", "mnist_bnn", "--attack", "pgd", "--param", "art/pgd.steps=3"], "not among"),
        (["--model", "mnist_bnn", "--eps", "0"], "eps must be"),
        (["--model", "mnist_bnn", "--eps", "-0.1"], "eps must be"),
        (["--model", "mnist_bnn", "--eps", "1.5"], "eps must be"),
        (["--model", "mnist_bnn", "--eps", "abc"], "8/255"),
        (["--model", "mnist_bnn", "--eps", "nan"], "eps must be"),
        (["--model", "mnist_bnn", "--eps", "1/0"], "8/255"),
        (["--model", "mnist_bnn", "--eps", "l7=1"], "linf, l2, l1, l0"),
        (["--model", "mnist_bnn", "--samples", "0"], "from 1 to 10000"),
        (["--model", "mnist_bnn", "--samples", "10001"], "from 1 to 10000"),
        (["--model", "mnist_bnn", "--targets", "12"], "class from 0 to 9"),
        (["--model", "mnist_bnn", "--preset", "homework"], "preset"),
        (["--model", "mnist_bnn", "--device", "cuda:7"], "cuda:7"),
        (["--model", "mnist_bnn", "--device", "meta"], "cannot be used here"),
        (["--model", "mnist_bnn", "--timeout", "nan"], "no finite number"),
        (["--model", "mnist_bnn", "--weights", "absent.safetensors"], "absent.safetensors"),
        (["--model", "mnist_bnn", "--attak", "pgd"], "--attack"),
        (["--model", ""], "bench list models"),
        (["--model", "absent.py:build"], "no file absent.py"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_bad_input_gets_one_line_and_exit_2(
    cli: Cli, tmp_path: Path, words: list[str], complaint: str
) -> None:
    answer = cli("run", *words)
    assert answer.code == 2
    assert complaint in answer.complaint
    assert answer.out == ""
    assert not list((tmp_path / "results").glob("runs/*/samples/*")), "nothing was half-written"


@pytest.mark.parametrize(
    ("code", "complaint"), [(NAN, "NaN"), (SEVEN, "expected (40, 10)"), (SMALL, "fails on images")]
)
def test_a_model_that_cannot_be_judged_is_refused(
    cli: Cli, tmp_path: Path, code: str, complaint: str
) -> None:
    file = tmp_path / "model.py"
    file.write_text(code)
    answer = cli("run", "--model", f"{file}:build", "--attack", "pgd", *QUICK)
    assert answer.code == 2
    assert complaint in answer.complaint


def test_probabilities_for_logits_are_flagged(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    file.write_text(SOFTMAX)
    found = cli("run", "--model", f"{file}:build", "--attack", "fgsm", "--json", *QUICK).json
    assert "probabilities for logits" in found["cells"][0]["flags"]
    assert (
        "probabilities for logits" in cli("run", "--model", f"{file}:build", "--attack", "fgsm", *QUICK).out
    )


@pytest.mark.fault
def test_a_results_folder_that_cannot_be_written(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "a-file"
    file.write_text("")
    answer = cli("run", "--model", "mnist_bnn", "--attack", "fgsm", "--results", str(file / "below"), *QUICK)
    assert answer.code == 2
    assert "cannot write" in answer.complaint


@pytest.mark.fault
@pytest.mark.parametrize("limit", [2_000, 60_000])
def test_a_full_disk_keeps_what_was_finished(cli: Cli, tmp_path: Path, limit: int) -> None:
    words = ("run", "--model", "mnist_bnn", "--attack", "logit_ascent,fgsm", "--json", *QUICK)
    whole = strip(cli(*words).json)
    other = str(tmp_path / "small")
    # A file that would outgrow the limit fails in write(2), as it does on a full disk: first run.json's
    # shards of ten images, then those of forty.
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        "from bench.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--results", other], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert f"cannot write to {other}" in done.stderr
    assert "what was finished is kept" in done.stderr
    finished = list(Path(other).glob("runs/*/shards/*.json"))
    assert len(finished) == (1 if limit > 40_000 else 0)
    assert strip(cli(*words, "--results", other).json) == whole


def test_debug_shows_where(capsys: pytest.CaptureFixture[str]) -> None:
    from adversarial_bench.errors import UnknownNameError
    from bench.cli import main

    with pytest.raises(UnknownNameError):
        main(["run", "--model", "nope", "--debug"])
