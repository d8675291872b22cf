"""What is stored is what its images say, and whatever is not is found, each in its own way."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adversarial_bench.hashing import digest, file_digest
from attacks.core import Goal, Threat
from bench.cli import main
from bench.plan import slice_ids
from bench.recompute import (
    ROUNDING,
    Case,
    Network,
    check_rows,
    differences,
    recompute,
    resolved,
)
from tests.bench.test_run import CRASHING
from tests.conftest import Answer
from zoo.models.binary import Sign

Cli = Callable[..., Answer]

LINEAR = """
import torch
from torch import nn

def build():
    torch.manual_seed(SEED)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
"""
# In float32 p + 2**24 is 2**24, so the sign is that of -p / 2; in float64 it is that of p / 2.
JUMPING = """
import torch
from torch import nn

class Jumping(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    def forward(self, x):
        p = x.flatten(1).mean(1, keepdim=True)
        return self.net(x) * ((p + 2.0**24) - 2.0**24 - p / 2).sign()

def build():
    return Jumping()
"""
SINGLE = LINEAR.replace("nn.Sequential(", "nn.Sequential(Single(), ").replace(
    "def build", "class Single(nn.Module):\n    def forward(self, x):\n        return x.float()\n\ndef build"
)


def model_file(folder: Path, code: str = LINEAR, seed: int = 0, name: str = "model") -> str:
    file = folder / f"{name}.py"
    file.write_text(code.replace("SEED", str(seed)))
    return f"{file}:build"


def run(results: Path, *words: str) -> Path:
    """A run's folder."""
    with pytest.raises(SystemExit):
        main(["run", *words, "--workers", "1", "--results", str(results)])
    return max(results.glob("runs/*"), key=lambda folder: folder.stat().st_mtime_ns)


@pytest.fixture(scope="module")
def zoo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks, transfers both ways, every kind of goal, every kind of threat model."""
    words = ("--attack", "fgsm,foolbox/fgsm,ink,logit_ascent,feature_ascent,mse_target", "--samples", "12")
    few = [word for name in ("logit_ascent", "mse_target") for word in ("--param", f"native/{name}.steps=4")]
    return run(tmp_path_factory.mktemp("zoo"), "--model", "mnist_relu,mnist_bnn", "--transfer", *words, *few)


@pytest.fixture(scope="module")
def linear_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that is hardly ever right, so that most samples keep their image; two shards of targets."""
    folder = tmp_path_factory.mktemp("linear")
    words = ("--attack", "fgsm,foolbox/fgsm", "--targets", "random", "--samples", "60", "--eps", "0.03")
    return run(folder / "results", "--model", model_file(folder), *words)


@pytest.fixture
def copied(linear_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(linear_run, tmp_path / "copy"))


class Shard:
    """A shard under the hands of somebody who knows how to write true hashes."""

    def __init__(self, folder: Path, attack: str = "native/fgsm", source: str | None = None) -> None:
        receipts = {file: json.loads(file.read_text()) for file in sorted(folder.glob("shards/*.json"))}
        self.receipt, self.record = next(
            (file, record)
            for file, record in receipts.items()
            if record["cell"]["attack"] == attack and record["cell"]["source"] == source
        )
        self.folder, self.name = folder, self.receipt.stem
        self.rows = pd.read_parquet(self.table)
        self.tensors = load_file(self.images)

    @property
    def table(self) -> Path:
        return self.folder / "samples" / f"{self.name}.parquet"

    @property
    def images(self) -> Path:
        return self.folder / "adv" / f"{self.name}.safetensors"

    def forge(self) -> None:
        """Writes rows, images and a receipt that fits them."""
        for file in (self.table, self.images, self.receipt):
            file.unlink(missing_ok=True)
        self.name = f"{self.record['key']}-{digest(self.rows['sample_id'].tolist())[:8]}"
        for name in ("sample_id", "label", "target", "success"):
            self.tensors[name] = torch.from_numpy(self.rows[name].to_numpy(copy=True))
        self.rows.to_parquet(self.table, index=False)
        save_file(self.tensors, self.images)
        self.record["errors"] = int((self.rows["status"] == "error").sum())
        self.record["images_sha256"] = file_digest(self.images)
        self.record["rows_sha256"] = file_digest(self.table)
        (self.folder / "shards" / f"{self.name}.json").write_text(json.dumps(self.record))

    def first(self, chosen: pd.Series) -> int:
        return int(np.flatnonzero(chosen)[0])


def test_a_run_is_confirmed(cli: Cli, zoo_run: Path) -> None:
    answer = cli("verify", str(zoo_run), "--json")
    assert answer.code == 0, answer.err
    found = answer.json
    assert found["complaints"] == []
    assert found["agrees"]
    assert (found["dtype"], found["batch_size"]) == ("float64", 161)
    receipts = [json.loads(file.read_text()) for file in zoo_run.glob("shards/*.json")]
    assert len(found["cells"]) == len(receipts)
    assert found["rows"] == sum(10 if "ascent" in r["cell"]["attack"] else 12 for r in receipts)
    assert found["images"] == 2 * (2 * 10 + 4 * 12)
    assert {(c["source"], c["model"]) for c in found["cells"] if c["source"]} == {
        ("mnist_relu", "mnist_bnn"),
        ("mnist_bnn", "mnist_relu"),
    }
    for entry in (c for c in found["cells"] if c["model"] == "mnist_relu"):
        # Only the binarised network may be of two minds.
        assert (entry["dtype_sensitive"], entry["undecided_by_rounding"]) == (0, 0)
        rate = "fooled" if entry["source"] else "attack_success_rate"
        assert entry["stored"][rate] == entry["recomputed"][rate]
    assert {w["threat"] for w in found["worst_case"]} == {"linf(0.1)", "ink", "unrestricted"}
    plain = cli("verify", str(zoo_run), "--dtype", "float32", "--batch-size", "5")
    assert plain.code == 0
    assert plain.out.rstrip().splitlines()[-1].startswith(f"{found['rows']} rows, 136 images: all agree")


def test_a_run_is_found_by_its_id_its_beginning_or_as_the_latest(cli: Cli, linear_run: Path) -> None:
    results = ("--results", str(linear_run.parent.parent))
    for name in (linear_run.name, linear_run.name[:-3], "latest"):
        answer = cli("verify", name, "--json", *results)
        assert (answer.code, answer.json["run"]) == (0, linear_run.name)
    missing = cli("verify", linear_run.name[:-2] + "zz", *results)
    assert missing.code == 2
    assert f"did you mean {linear_run.name}?" in missing.complaint


def test_requests_that_cannot_be_served(cli: Cli, linear_run: Path, tmp_path: Path) -> None:
    empty = cli("verify", "latest")
    assert empty.code == 2
    assert "bench run" in empty.complaint
    for name in ("one-1", "one-2"):
        shutil.copytree(linear_run, tmp_path / "results" / "runs" / name)
    several = cli("verify", "one")
    assert several.code == 2
    assert "one-1, one-2" in several.complaint
    misplaced = cli("verify", "one-1", "--eps", "0.3")
    assert misplaced.code == 2
    assert "--eps goes with a file" in misplaced.complaint


def test_no_attack_is_imported(linear_run: Path) -> None:
    code = (
        "import sys\nfrom bench.cli import main\n"
        f"try: main(['verify', {str(linear_run)!r}, '--json'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "print(*(m for m in sys.modules if m.startswith('attacks.')), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # Values, the check at the door, the names: nothing that could make an image.
    allowed = {"attacks.core", "attacks.api", "attacks.registry", "attacks.models", "attacks.bisection"}
    assert set(done.stderr.split()) == allowed


def put_back(shard: Shard) -> str:
    """The original in place of an image that fooled."""
    at = shard.first(shard.rows["success"])
    shard.tensors["images"][at] = shard.tensors["images"][at].round()
    return f"sample {shard.rows['sample_id'][at]}: "


def claim_success(shard: Shard) -> str:
    at = shard.first((shard.rows["status"] == "ok") & ~shard.rows["success"])
    shard.rows.loc[at, "success"] = True
    return f"sample {shard.rows['sample_id'][at]}: success True in the store, False recomputed"


def hide_success(shard: Shard) -> str:
    """A broken sample called a crash, which no figure would count as broken."""
    at = shard.first(shard.rows["success"])
    shard.rows.loc[at, ["status", "message", "success"]] = ["error", "it crashed", False]
    return f"sample {shard.rows['sample_id'][at]}: its image must be the original (status error)"


def change_label(shard: Shard) -> str:
    shard.rows.loc[3, "adv_label"] = 9 - shard.rows.loc[3, "adv_label"]
    return f"sample {shard.rows['sample_id'][3]}: adv_label"


def change_confidence(shard: Shard) -> str:
    shard.rows.loc[3, "adv_confidence"] += 1e-3
    return f"sample {shard.rows['sample_id'][3]}: adv_confidence"


def change_distance(shard: Shard) -> str:
    at = shard.first(shard.rows["success"])
    shard.rows.loc[at, "l2"] *= 1 - 1e-4
    return f"sample {shard.rows['sample_id'][at]}: l2"


def change_target(shard: Shard) -> str:
    at = shard.first(shard.rows["target"] != 3)
    shard.rows.loc[at, "target"] = 3
    return f"sample {shard.rows['sample_id'][at]}: target 3 in the store"


def change_truth(shard: Shard) -> str:
    """Labels that make a network right."""
    at = shard.first(shard.rows["status"] == "clean_wrong")
    shard.rows.loc[at, "label"] = shard.rows.loc[at, "clean_label"]
    return f"sample {shard.rows['sample_id'][at]}: label"


def attack_the_wrong(shard: Shard) -> str:
    """An image for a sample that was wrong before."""
    at = shard.first(shard.rows["status"] == "clean_wrong")
    shard.tensors["images"][at, 0, 0, 0] = 1e-4
    return f"sample {shard.rows['sample_id'][at]}: its image must be the original (status clean_wrong)"


def choose_samples(shard: Shard) -> str:
    """Another sample in place of an awkward one."""
    at = shard.first(shard.rows["success"])
    ids = slice_ids("mnist", 10_000, 61)
    shard.rows.loc[at, "sample_id"] = ids[60]
    return "1 of 60 samples are not among the first 60 of the fixed order, 0 are double"


def double_sample(shard: Shard) -> str:
    shard.rows.loc[5, "sample_id"] = shard.rows.loc[6, "sample_id"]
    return "0 of 60 samples are not among the first 60 of the fixed order, 1 are double"


def leave_out(shard: Shard) -> str:
    shard.rows = shard.rows.iloc[:-7].reset_index(drop=True)
    shard.tensors["images"] = shard.tensors["images"][:-7].clone()
    return "rows are missing of 1 cells: "


def other_type(shard: Shard) -> str:
    shard.rows["adv_label"] = shard.rows["adv_label"].astype(float)
    return "in another type: adv_label"


FORGERIES = [value for value in list(vars().values()) if getattr(value, "__annotations__", {}).get("shard")]


@pytest.mark.parametrize("forgery", FORGERIES, ids=lambda forgery: forgery.__name__)
def test_a_forgery_with_true_hashes_is_found(cli: Cli, copied: Path, forgery: Callable[[Shard], str]) -> None:
    shard = Shard(copied)
    told = forgery(shard)
    shard.forge()
    answer = cli("verify", str(copied), "--json")
    assert answer.code == 1
    assert told in "\n".join(answer.json["complaints"])
    assert not any("foolbox" in line for line in answer.json["complaints"]), "the other shard is as it was"
    assert any(c["attack"] == "foolbox/fgsm" and c["differing"] == 0 for c in answer.json["cells"])


def test_forged_figures_stand_beside_the_true_ones(cli: Cli, linear_run: Path, copied: Path) -> None:
    before = cli("verify", str(linear_run), "--json").json
    for attack in ("native/fgsm", "foolbox/fgsm"):
        shard = Shard(copied, attack)
        broken = (shard.rows["status"] == "ok") & (shard.rows["adv_label"] != shard.rows["label"])
        assert broken.any()
        shard.rows.loc[broken, "adv_label"] = shard.rows.loc[broken, "label"]
        shard.rows["success"] = False
        shard.forge()
    after = cli("verify", str(copied), "--json").json
    for was, now in zip(before["cells"], after["cells"]):
        assert now["stored"]["robust_accuracy"]["value"] > was["stored"]["robust_accuracy"]["value"]
        assert now["recomputed"] == was["recomputed"]
        assert now["differing"] == now["differing_in"]["adv_label"] > 0
    assert [w["agrees"] for w in before["worst_case"]] == [True]
    assert [w["agrees"] for w in after["worst_case"]] == [False]
    assert any(line.startswith("worst case of") for line in after["complaints"])


def cut(shard: Shard) -> str:
    shard.images.write_bytes(shard.images.read_bytes()[:-100])
    return f"adv/{shard.name}.safetensors is damaged"


def flip(shard: Shard) -> str:
    data = bytearray(shard.table.read_bytes())
    data[len(data) // 2] ^= 1
    shard.table.write_bytes(data)
    return f"samples/{shard.name}.parquet is damaged"


def lose(shard: Shard) -> str:
    shard.images.unlink()
    return f"adv/{shard.name}.safetensors is missing"


def garble(shard: Shard) -> str:
    shard.receipt.write_text("[]")
    return f"shards/{shard.name}.json is damaged"


def lose_all(shard: Shard) -> str:
    for file in (shard.images, shard.table, shard.receipt):
        file.unlink()
    return "rows are missing of 1 cells: "


def swap(shard: Shard) -> str:
    """Another cell's receipt and files under this one's name."""
    other = Shard(shard.folder, "foolbox/fgsm")
    for mine, its in (
        (shard.images, other.images),
        (shard.table, other.table),
        (shard.receipt, other.receipt),
    ):
        shutil.copy(its, mine)
    return f"shards/{shard.name}.json is not named by the hash"


@pytest.mark.parametrize("damage", [cut, flip, lose, garble, lose_all, swap], ids=lambda d: d.__name__)
def test_damage_is_named(cli: Cli, copied: Path, damage: Callable[[Shard], str]) -> None:
    told = damage(Shard(copied))
    answer = cli("verify", str(copied))
    assert answer.code == 1
    assert told in answer.err
    assert "60 rows, 60 images: 1 problem\n" in answer.out


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((folder / "run.json").read_text())
    change(document)
    (folder / "run.json").write_text(json.dumps(document))


def test_an_unfinished_run_is_no_forgery(cli: Cli, copied: Path) -> None:
    lose_all(Shard(copied))
    edit(copied, lambda document: document.update(status="running"))
    answer = cli("verify", str(copied))
    assert answer.code == 0
    assert "not finished: rows are missing of 1 cells" in answer.err


def test_other_weights_are_found(cli: Cli, copied: Path, tmp_path: Path) -> None:
    other = nn.Linear(784, 10)
    save_file({"1.weight": other.weight.data, "1.bias": other.bias.data}, tmp_path / "other.safetensors")
    answer = cli("verify", str(copied), "--weights", str(tmp_path / "other.safetensors"), "--json")
    assert answer.code == 1
    assert len(answer.json["complaints"]) == 1
    assert "its rows are not checked: its weights here" in answer.json["complaints"][0]
    assert answer.json["rows"] == 0
    edit(
        copied, lambda document: document["fingerprints"].update(dict.fromkeys(document["fingerprints"], "0"))
    )
    forged = cli("verify", str(copied), "--json")
    assert forged.code == 1
    assert "its weights in run.json (fingerprint 0)" in forged.json["complaints"][0]


def test_a_changed_or_damaged_run_json_is_found(cli: Cli, copied: Path) -> None:
    edit(copied, lambda document: document["spec"].update(samples=50))
    answer = cli("verify", str(copied))
    assert answer.code == 1
    assert "its id is not the hash of its spec" in answer.complaint
    (copied / "run.json").write_text("{}")
    assert cli("verify", str(copied)).code == 1
    (copied / "run.json").write_text("{")
    answer = cli("verify", str(copied))
    assert answer.code == 1
    assert "run.json cannot be read" in answer.complaint


def test_a_transfer_must_show_the_images_of_its_source(cli: Cli, zoo_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(zoo_run, tmp_path / "copy"))
    shard = Shard(folder, "native/ink", source="mnist_relu")
    shard.tensors["images"][2, 0, 0, 0] = 0.5
    shard.rows.loc[4, "status"] = "ok" if shard.rows.loc[4, "status"] == "not_shown" else "not_shown"
    shard.forge()
    answer = cli("verify", str(folder), "--json")
    assert answer.code == 1
    ids = shard.rows["sample_id"]
    told = [line for line in answer.json["complaints"] if "sample" in line]
    assert len(told) == 2
    assert f"sample {ids[2]}: its image must be the one made on mnist_relu" in told[0]
    assert f"sample {ids[4]}: status" in told[1]


def test_crashes_are_taken_as_told_and_their_images_checked(cli: Cli, tmp_path: Path) -> None:
    model = model_file(tmp_path, CRASHING)
    folder = run(tmp_path / "crashed", "--model", model, "--attack", "fgsm", "--samples", "200")
    answer = cli("verify", str(folder), "--json")
    assert answer.code == 0, answer.json["complaints"]
    assert answer.json["cells"][0]["stored"]["errors"] > 0
    shard = Shard(folder)
    at = shard.first(shard.rows["status"] == "error")
    shard.tensors["images"][at] = 0
    shard.forge()
    assert "must be the original (status error)" in cli("verify", str(folder)).err


def test_a_network_that_float64_changes_is_told_from_a_forgery(cli: Cli, tmp_path: Path) -> None:
    words = ("--attack", "fgsm", "--samples", "50")
    folder = run(tmp_path / "jumps", "--model", model_file(tmp_path, JUMPING), *words)
    answer = cli("verify", str(folder), "--json")
    assert answer.code == 0, answer.json["complaints"]
    entry = answer.json["cells"][0]
    assert (entry["dtype_sensitive"], entry["differing"]) == (50, 0)
    assert entry["stored"]["clean_accuracy"]["value"] != entry["recomputed"]["clean_accuracy"]["value"]
    assert "50 dtype-sensitive" in cli("verify", str(folder)).out
    shard = Shard(folder)
    told = change_label(shard)
    shard.forge()
    assert told in cli("verify", str(folder)).err


def test_a_network_that_knows_float32_only_is_verified_in_it(cli: Cli, tmp_path: Path) -> None:
    folder = run(
        tmp_path / "r", "--model", model_file(tmp_path, SINGLE), "--attack", "fgsm", "--samples", "20"
    )
    answer = cli("verify", str(folder))
    assert answer.code == 0
    assert "does not run in float64" in answer.err


class Twins(nn.Module):
    """Logits ±(1, -1) by the sign of w·x - v·x, with v = w: whoever rounds otherwise jumps."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(16, 1, bias=False)
        self.v = nn.Linear(16, 1, bias=False)
        self.v.load_state_dict(self.w.state_dict())
        self.sign = Sign()

    def forward(self, x: Tensor) -> Tensor:
        side = self.sign(self.w(x.flatten(1)) - self.v(x.flatten(1)))
        return torch.cat([side, -side], 1)


def _case(logits: Tensor, images: Tensor, claimed: Tensor) -> Case:
    """Rows that say what these logits say."""
    labels = torch.zeros(len(images), dtype=torch.int64)
    empty = pd.DataFrame(
        {
            "clean_label": claimed.numpy(),
            "adv_label": claimed.numpy(),
            "status": "ok",
            "clean_confidence": np.zeros(len(images), dtype=np.float32),
            "adv_confidence": np.zeros(len(images), dtype=np.float32),
        }
    )
    case = Case(empty, images, images, labels, Goal("untargeted", labels), Threat("linf", 0.1))
    columns, _ = recompute(case, logits, logits)
    rows = pd.DataFrame(columns)
    return Case(rows, images, images, labels, case.goal, case.threat)


def test_what_another_machine_would_round_otherwise_is_no_difference(grey: Tensor) -> None:
    side = torch.ones(len(grey), 1)
    network = Network.of(Twins(), grey[:1])
    opinion = network.opinion(torch.float64, 7)
    assert opinion(grey).argmax(1).tolist() == [0] * len(grey)
    elsewhere = _case(torch.cat([-side, side], 1), grey, torch.ones(len(grey), dtype=torch.int64))
    found = check_rows(elsewhere, opinion(grey), opinion, network.others(torch.float64, 7))
    assert found.sensitive.all()
    assert not found.differs.to_numpy().any()
    # A label that no rounding gives: logits (1, -1) with class 1.
    sure = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        sure[1].weight.zero_()
        sure[1].bias.copy_(torch.tensor([1.0, -1.0]))
    network = Network.of(sure, grey[:1])
    opinion = network.opinion(torch.float64, 7)
    found = check_rows(elsewhere, opinion(grey), opinion, network.others(torch.float64, 7))
    assert not found.sensitive.any()
    assert found.differs["adv_label"].all()


@given(
    st.floats(0, 3, allow_subnormal=False),
    st.sampled_from([1e-3, 1.0, 40.0]),
    st.integers(0, 2),
)
def test_ties_go_to_the_store_and_nothing_else_does(gap: float, scale: float, claimed: int) -> None:
    """Logits (s, s (1 - gap · ROUNDING), -s / 2): the second is tied with the first where gap <= 1."""
    logits = torch.tensor([[1.0, 1.0 - gap * ROUNDING, -0.5]], dtype=torch.float64) * scale
    decided, tied = resolved(logits, np.array([claimed]))
    if abs(gap - 1) > 1e-6:
        assert bool(tied[0]) == (claimed == 1 and gap < 1)
    assert int(decided.argmax(1)) == (claimed if tied[0] else 0)
    assert float((decided - logits).abs().max()) <= 1.01 * ROUNDING * scale


@pytest.mark.parametrize(
    ("column", "change", "differs"),
    [
        ("adv_confidence", 0.9e-4, False),
        ("adv_confidence", 1.1e-4, True),
        ("l2", 0.9e-6, False),
        ("l2", 1.2e-5, True),
        ("violation", 1.1e-6, True),
        ("violation", 0.9e-6, False),
        ("adv_label", 1, True),
        ("l0", 1.0, True),
    ],
)
def test_the_tolerances(grey: Tensor, column: str, change: float, differs: bool) -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0]] * len(grey), dtype=torch.float64)
    case = _case(logits, grey, torch.zeros(len(grey), dtype=torch.int64))
    again = {name: case.rows[name].to_numpy().copy() for name in case.rows}
    assert not differences(case.rows, again).to_numpy().any()
    again[column] = again[column] + np.array(change).astype(again[column].dtype)
    found = differences(case.rows, again)
    assert found[column].all() == differs
    assert not found.drop(columns=column).to_numpy().any()


def test_a_confidence_that_rounding_takes_across_nine_tenths_is_undecided(grey: Tensor) -> None:
    """p = 0.9 ∓ 2e-5: the share of confident images must not hang on a rounding."""

    def logits(p: float) -> Tensor:
        return torch.tensor([[p, 1 - p]] * len(grey), dtype=torch.float64).log()

    case = _case(logits(0.90002), grey, torch.zeros(len(grey), dtype=torch.int64))
    columns, undecided = recompute(case, logits(0.90002), logits(0.89998))
    assert undecided.all()
    assert (columns["adv_confidence"] == case.rows["adv_confidence"]).all()
    columns, undecided = recompute(case, logits(0.90002), logits(0.8998))
    assert not undecided.any()
    assert differences(case.rows, columns)["adv_confidence"].all()


# A file of images.


@pytest.fixture
def sent(tmp_path: Path) -> Callable[..., str]:
    """Writes tensors as somebody would send them."""

    def write(**tensors: Tensor) -> str:
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "sent.safetensors"
        )
        return str(tmp_path / "sent.safetensors")

    return write


def shifted(x: Tensor, by: float) -> Tensor:
    """Every pixel moved by this much, away from the nearer end of [0, 1]."""
    return torch.where(x < 0.5, x + by, x - by)


Sent = Callable[..., str]
Mnist = tuple[Tensor, Tensor]


def test_a_file_is_judged_like_an_attack(cli: Cli, sent: Sent, mnist: Mnist, relu: nn.Module) -> None:
    ids = torch.tensor(slice_ids("mnist", 10_000, 300))
    x, y = mnist[0][ids], mnist[1][ids]
    images = shifted(x, 0.25)
    with torch.no_grad():
        before, after = relu(x).argmax(1), relu(images).argmax(1)
    file = sent(images=images, sample_id=ids, label=y)
    words = ("--model", "mnist_relu", "--eps", "0.25,0.2499,l2=7,l2=6.9", "--json")
    answer = cli("verify", file, *words)
    assert answer.code == 0
    within, beyond, far, near = answer.json["threats"]
    right, broken = before == y, (before == y) & (after != y)
    assert 0 < broken.sum() < right.sum()
    for found in (within, far):
        assert (found["infeasible"], found["robust_accuracy"]["n"]) == (0, 300)
        assert found["clean_accuracy"]["value"] == pytest.approx(float(right.double().mean()), abs=1e-6)
        robust = float((right & ~broken).double().mean())
        assert found["robust_accuracy"]["value"] == pytest.approx(robust, abs=1e-6)
        assert found["attack_success_rate"]["n"] == int(right.sum())
        rate = float(broken.sum() / right.sum())
        assert found["attack_success_rate"]["value"] == pytest.approx(rate, abs=1e-6)
        assert found["attack_success_rate"]["low"] < rate < found["attack_success_rate"]["high"]
    # Linf is 0.25 and L2 0.25 · sqrt(784) = 7, up to float32's rounding of the images.
    assert within["largest_violation"] < 1e-6
    assert beyond["largest_violation"] == pytest.approx(1e-4, abs=1e-6)
    assert near["largest_violation"] == pytest.approx(0.1, abs=1e-5)
    for found in (beyond, near):
        assert found["infeasible"] == 300
        assert found["attack_success_rate"]["value"] == 0.0
        assert found["robust_accuracy"] == found["clean_accuracy"]
    again = cli("verify", file, *words, "--dtype", "float64", "--batch-size", "7").json
    assert [t["robust_accuracy"] for t in again["threats"]] == [
        t["robust_accuracy"] for t in answer.json["threats"]
    ]


def test_ids_say_which_image_is_whose(cli: Cli, sent: Sent, mnist: Mnist) -> None:
    images, order = mnist[0][:40], torch.randperm(40, generator=torch.Generator().manual_seed(0))
    words = ("--model", "mnist_relu", "--eps", "0.1")
    plain = cli("verify", sent(images=images), *words)
    assert "taken as 0 … 39" in plain.err
    kept = cli("verify", sent(images=images[order], sample_id=order.int()), *words)
    assert kept.out == plain.out
    assert "taken as" not in kept.err
    mixed = cli("verify", sent(images=images[order]), *words, "--json").json["threats"][0]
    assert mixed["infeasible"] == int((order != torch.arange(40)).sum())


def test_ink_and_targets(cli: Cli, sent: Sent, mnist: Mnist, relu: nn.Module) -> None:
    x, y = mnist[0][:30], mnist[1][:30]
    more, less = (x + 0.3).clamp(0, 1), x * 0.99
    target = (y + 1) % 10
    with torch.no_grad():
        reached = (relu(more).argmax(1) == target) & (relu(x).argmax(1) == y)
    found = cli("verify", sent(images=more, target=target), "--model", "mnist_relu", "--ink", "--json").json
    assert found["goal"] == "targeted"
    assert found["threats"][0]["infeasible"] == 0
    assert found["threats"][0]["attack_success_rate"]["value"] == pytest.approx(
        float(reached.sum() / (relu(x).argmax(1) == y).sum()), abs=1e-6
    )
    erased = cli("verify", sent(images=less), "--model", "mnist_relu", "--ink", "--json").json["threats"][0]
    assert erased["infeasible"] == 30
    free = cli("verify", sent(images=less), "--model", "mnist_relu", "--json").json["threats"][0]
    assert (free["threat"], free["infeasible"]) == ("unrestricted", 0)


def test_what_is_no_image_is_counted_and_no_success(cli: Cli, sent: Sent, mnist: Mnist) -> None:
    images = shifted(mnist[0][:20], 0.5)
    images[0, 0, 0, 0] = float("nan")
    images[1] = float("inf")
    images[2, 0, 3, 3] = 1.25
    images[3, 0, 3, 3] = -0.125
    found = cli("verify", sent(images=images), "--model", "mnist_relu", "--json").json["threats"][0]
    assert (found["infeasible"], found["not_finite"]) == (4, 2)
    assert found["largest_violation"] == 0.25
    nothing = torch.full((5, 1, 28, 28), float("nan"))
    answer = cli("verify", sent(images=nothing), "--model", "mnist_relu", "--json")
    assert answer.json["threats"][0]["infeasible"] == 5
    assert answer.json["threats"][0]["largest_violation"] is None
    assert answer.json["threats"][0]["attack_success_rate"]["value"] == 0.0


def test_a_run_s_own_file_says_what_its_rows_say(cli: Cli, zoo_run: Path) -> None:
    shard = Shard(zoo_run, "foolbox/fgsm")
    model = shard.record["cell"]["model"]
    answer = cli("verify", str(shard.images), "--model", model, "--eps", "0.1", "--json")
    right = (shard.rows["clean_label"] == shard.rows["label"]).sum()
    rate = answer.json["threats"][0]["attack_success_rate"]
    assert rate["value"] == pytest.approx(shard.rows["success"].sum() / right, abs=1e-6)


X = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(6)


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ({"image": X}, "no tensor `images`; it has: image"),
        ({"images": X[0]}, r"shape \(1, 28, 28\); expected \(N, 1, 28, 28\)"),
        ({"images": X[:, :, :27]}, r"shape \(6, 1, 27, 28\)"),
        ({"images": X.repeat(1, 3, 1, 1)}, r"shape \(6, 3, 28, 28\)"),
        ({"images": X[:0]}, r"shape \(0, 1, 28, 28\)"),
        ({"images": (X * 255).to(torch.uint8)}, "they are uint8; divide by 255"),
        ({"images": (X * 255).long()}, "they are int64; divide by 255"),
        ({"images": X > 0.5}, "they are bool"),
        ({"images": (X * 255).round()}, "values run from 1 to 255, .* divide by 255"),
        ({"images": 6 * X - 3}, "values run from -.* undo the normalisation"),
        ({"images": X, "sample_id": IDS.float()}, "`sample_id` must be integers"),
        ({"images": X, "sample_id": IDS[:5]}, r"`sample_id` has shape \(5,\); expected \(6,\)"),
        ({"images": X, "sample_id": IDS + 9_996}, "2 of 6 sample_id are not from 0 to 9999, .* 10000"),
        ({"images": X, "sample_id": IDS - 1}, "1 of 6 sample_id .* -1"),
        ({"images": X, "sample_id": IDS // 2}, "must be distinct; 0 comes more than once, as do 3 ids"),
        ({"images": X, "label": IDS}, "5 of 6 labels contradict mnist: sample 0 is a 7 there, a 0 here"),
        ({"images": X, "target": torch.tensor([7, 3, 3, 10, 3, -1])}, "3 of 6 targets are no class"),
        ({"images": X, "target": IDS[:, None]}, r"`target` has shape \(6, 1\)"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)
def test_a_bad_file_gets_one_line_and_exit_2(
    cli: Cli, sent: Sent, tensors: dict[str, Tensor], complaint: str
) -> None:
    answer = cli("verify", sent(**tensors), "--model", "mnist_relu", "--eps", "0.3")
    assert answer.code == 2
    assert re.search(complaint, answer.complaint), answer.complaint
    assert "sent.safetensors" in answer.complaint
    assert answer.out == ""


def test_other_bad_requests_with_a_file(cli: Cli, sent: Sent, tmp_path: Path) -> None:
    file = sent(images=X)
    text = tmp_path / "notes.txt"
    text.write_text("no tensors here")
    for words, complaint in (
        ([file], "--model is needed"),
        ([file, "--model", "mnist_rely"], "mnist_relu"),
        ([file, "--model", "mnist_relu", "--eps", "linf"], "8/255"),
        ([file, "--model", "mnist_relu", "--eps", "2"], "eps must be"),
        ([file, "--model", "mnist_relu", "--eps", "0.3", "--ink"], "choose one"),
        ([file, "--model", "mnist_relu", "--dataset", "mnits"], "mnist"),
        ([str(text), "--model", "mnist_relu"], "not a readable safetensors file"),
        ([str(tmp_path / "absent.safetensors"), "--model", "mnist_relu"], "no file"),
    ):
        answer = cli("verify", *words)
        assert (answer.code, answer.out) == (2, "")
        assert complaint in answer.complaint
