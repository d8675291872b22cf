"""Who computes: the same bytes from everybody, and from a run whose workers were killed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import bench
from bench.executors import Driver, Failure, Serial, attempt
from bench.executors.processes import idlest
from bench.plan import Bundle, Task, cells_of, tasks_of
from bench.runner import Outcome
from bench.session import perform
from bench.spec import RunSpec
from tests.bench.test_long_runs import HANGING
from tests.bench.test_run import CRASHING, descendants
from tests.conftest import Answer

Cli = Callable[..., Answer]
WORDS = {
    "processes": ("--executor", "processes", "--workers", "2"),
    "ray": ("--executor", "ray", "--workers", "2"),
    "slurm": ("--executor", "slurm", "--address", "local", "--workers", "2"),
}


def installed(name: str, package: str) -> Any:
    missing = pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")
    return pytest.param(name, marks=[pytest.mark.slow, missing])


RAY = installed("ray", "ray")
SLURM = installed("slurm", "submitit")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster of one node, that runs already."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 2**27}
    found = Cluster(initialize_head=True, head_node_args=node)
    yield found
    found.shutdown()


@pytest.fixture
def executor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """The options that ask for an executor; of Ray's, one that runs already."""
    # Workers import the package from wherever they are: it need not be installed for these tests.
    monkeypatch.setenv("PYTHONPATH", str(Path(bench.__file__).parents[1]))
    # As bench does before it imports Ray, which these tests have imported before bench does.
    monkeypatch.setenv("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    if request.param != "ray":
        return WORDS[request.param]
    return (*WORDS["ray"], "--address", request.getfixturevalue("cluster").address)


DEADLY = """
import os, signal
from pathlib import Path
import torch
from torch import nn

LIVES = Path({lives!r})

class Deadly(nn.Module):
    '''Kills its process where a gradient is asked of several images, while there are lives to take.'''
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
        torch.manual_seed(0)
        nn.init.normal_(self.net[1].weight)
    def forward(self, x):
        if x.requires_grad and len(x) > 1 and (lives := int(LIVES.read_text())):
            LIVES.write_text(str(lives - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return self.net(x)

def build():
    return Deadly()
"""

ABSENT = """
import os
from pathlib import Path
from torch import nn

if os.getpid() != {driver} and not Path({flag!r}).exists():
    raise ImportError("half of the network is on another machine")

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
"""


def stored(results: Path) -> dict[str, bytes]:
    """Rows and images of a store's one run, by file."""
    (run,) = (results / "runs").iterdir()
    return {
        f"{file.parent.name}/{file.name}": file.read_bytes()
        for folder in ("samples", "adv")
        for file in (run / folder).iterdir()
    }


def test_a_cells_largest_shard_is_handed_out_first(tmp_path: Path) -> None:
    handed = []

    class Watched(Serial):
        def execute(self, bundles: Iterable[Bundle]) -> Iterator[tuple[Task, Outcome]]:
            for task, outcome in super().execute(bundles):
                handed.append((task.cell.attack, len(task.ids)))
                yield task, outcome

    spec = RunSpec(("mnist_relu",), ("native/fgsm", "native/corners"), "mnist", 600, {"linf": (0.1,)})
    perform(spec, tmp_path, Watched())
    sizes = [300, 200, 100]
    assert handed == [(attack, size) for attack in spec.attacks for size in sizes]


def test_workers_are_spread_over_the_gpus() -> None:
    taken: list[int | None] = []
    for _ in range(5):
        taken.append(idlest(3, taken))
    assert taken == [0, 1, 2, 0, 1]
    assert idlest(3, [0, 2, 2]) == 1, "a worker that died leaves its GPU to the next"
    assert idlest(1, []) is idlest(0, []) is None


@pytest.mark.parametrize("name", ["processes", RAY, SLURM])
def test_the_bytes_do_not_tell_who_computed(cli: Cli, tmp_path: Path, name: str) -> None:
    crashing = tmp_path / "crashing.py"
    crashing.write_text(CRASHING)
    words = (
        "run",
        "--model",
        f"mnist_bnn,{crashing}:build",
        "--attack",
        "art/pgd",
        "--transfer",
        "--samples",
        "60",
    )
    alone = cli(*words, "--executor", "serial", "--results", str(tmp_path / "alone"))
    found = cli(*words, *WORDS[name], "--results", str(tmp_path / "found"))
    assert (alone.code, found.code) == (1, 1), "the attack raises on some images"
    assert found.err.splitlines()[0] == alone.err.splitlines()[0]
    assert len(stored(tmp_path / "alone")) == 6, "two models, and what one shows the other"
    assert stored(tmp_path / "found") == stored(tmp_path / "alone")
    assert sorted(os.listdir(tmp_path / "found")) == [".locks", "runs"]


@pytest.mark.fault
@pytest.mark.parametrize("executor", ["processes", RAY, SLURM], indirect=True)
def test_a_shard_whose_worker_dies_is_tried_again(
    cli: Cli, tmp_path: Path, executor: tuple[str, ...]
) -> None:
    file, lives = tmp_path / "deadly.py", tmp_path / "lives"
    file.write_text(DEADLY.format(lives=str(lives)))
    words = ("run", "--model", f"{file}:build", "--attack", "pgd,corners", "--samples", "40")
    lives.write_text("0")
    assert cli(*words, "--executor", "serial", "--results", str(tmp_path / "alone")).code == 0
    lives.write_text("2" if "slurm" not in executor else "1")
    assert cli(*words, *executor, "--results", str(tmp_path / "found")).code == 0
    assert lives.read_text() == "0"
    assert stored(tmp_path / "found") == stored(tmp_path / "alone")


@pytest.mark.fault
@pytest.mark.parametrize("executor", ["processes", RAY], indirect=True)
def test_a_shard_that_kills_every_worker_is_an_error_and_the_run_ends(
    cli: Cli, tmp_path: Path, executor: tuple[str, ...]
) -> None:
    file, lives = tmp_path / "deadly.py", tmp_path / "lives"
    file.write_text(DEADLY.format(lives=str(lives)))
    words = ("run", "--model", f"{file}:build", "--attack", "pgd,corners", "--samples", "40")
    lives.write_text("0")
    cli(*words, "--executor", "serial", "--results", str(tmp_path / "alone"))
    lives.write_text("1000")
    answer = cli(*words, *executor, "--json")
    assert answer.code == 1
    assert lives.read_text() == "997"
    by_attack = {entry["attack"]: entry for entry in answer.json["cells"]}
    assert by_attack["native/corners"]["status"] == "ok"
    assert by_attack["native/pgd"]["status"] == "error"
    assert "3 workers died of this shard" in answer.err
    rows = pd.concat(pd.read_parquet(file) for file in Path(answer.json["path"]).glob("samples/*"))
    errors = rows[rows["status"] == "error"]
    right = (rows["clean_label"] == rows["label"]).sum() // 2
    assert len(errors) == right > 0
    assert not errors["success"].any()
    lives.write_text("0")
    assert cli(*words, *executor).code == 0
    assert stored(tmp_path / "results") == stored(tmp_path / "alone")


@pytest.mark.fault
@pytest.mark.parametrize("executor", [RAY, SLURM], indirect=True)
def test_an_attack_that_hangs_in_a_cluster_is_stopped(
    cli: Cli, tmp_path: Path, executor: tuple[str, ...]
) -> None:
    file, trouble = tmp_path / "hanging.py", tmp_path / "trouble"
    file.write_text(HANGING.format(trouble=str(trouble)))
    words = ("run", "--model", f"{file}:build", "--attack", "fgsm,corners", "--samples", "40")
    assert cli(*words, "--executor", "serial", "--results", str(tmp_path / "alone")).code == 0
    trouble.touch()
    first = cli(*words, *executor, "--timeout", "10", "--json")
    assert first.code == 1, first.err
    assert "stopped after 10 s (--timeout)" in first.err
    status = {cell["attack"]: cell["status"] for cell in first.json["cells"]}
    assert status == {"native/fgsm": "error", "native/corners": "ok"}
    trouble.unlink()
    assert cli(*words, *executor, "--timeout", "60").code == 0
    assert stored(tmp_path / "results") == stored(tmp_path / "alone")


@pytest.mark.parametrize("executor", ["processes", RAY, SLURM], indirect=True)
def test_a_worker_that_cannot_have_the_model_is_named(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("absent.py").write_text(ABSENT.format(driver=os.getpid(), flag=str(tmp_path / "flag")))
    words = ("run", "--model", "absent.py:build", "--attack", "fgsm,noise", "--samples", "20")
    cli(*words, "--executor", "serial", "--results", str(tmp_path / "alone"))
    answer = cli(*words, *executor)
    assert answer.code == 2
    assert "half of the network is on another machine" in answer.complaint
    assert "a worker needs the package, the dataset and the files that you named" in answer.complaint
    assert stored(tmp_path / "results") == {}, "nothing half-written"
    Path("flag").touch()
    # A relative path counts from the driver's folder, for workers, too.
    assert cli(*words, *executor).code == 0
    assert stored(tmp_path / "results") == stored(tmp_path / "alone")


LONG = (
    "run",
    "--model",
    "mnist_bnn",
    "--attack",
    "pgd,pgd_l2,square,apgd_ce,apgd_dlr,apgd_ce_l2",
    "--samples",
    "60",
)


@contextmanager
def started(results: Path, *words: str, alone: bool = False) -> Iterator[subprocess.Popen[str]]:
    """A run under way, which a test that fails does not leave behind."""
    command = [sys.executable, "-c", "from bench.cli import main; main()", *LONG, *words]
    with subprocess.Popen(
        [*command, "--results", str(results)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=alone,
        # A test runner started in the background ignores Ctrl-C, and its children with it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def receipts(results: Path) -> int:
    return len(list(results.glob("runs/*/shards/*.json")))


def wait_for(running: subprocess.Popen[str], happened: Callable[[], Any]) -> Any:
    while not (found := happened()):
        assert running.poll() is None, running.communicate()[1]
        time.sleep(0.02)
    return found


def at_work(pid: int, title: str) -> list[int]:
    """The processes below one that are called so."""

    def called(process: int) -> bool:
        try:
            return title in Path(f"/proc/{process}/cmdline").read_text()
        except OSError:
            return False

    return [process for process in descendants(pid) if called(process)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    results = tmp_path_factory.mktemp("undisturbed")
    with started(results, "--executor", "serial") as running:
        running.communicate()
    return stored(results)


@pytest.mark.fault
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds workers through /proc")
@pytest.mark.parametrize("executor", ["processes", RAY], indirect=True)
def test_a_worker_killed_in_mid_run_changes_nothing(
    tmp_path: Path, undisturbed: dict[str, bytes], request: pytest.FixtureRequest, executor: tuple[str, ...]
) -> None:
    # Workers are below the server that forks them, with its command line; Ray's are called by their task.
    title, above = ("ray::bench", os.getpid()) if "ray" in executor else ("forkserver", None)
    with started(tmp_path, *executor) as running:
        wait_for(running, lambda: receipts(tmp_path) >= 1)
        os.kill(wait_for(running, lambda: at_work(above or running.pid, title))[-1], signal.SIGKILL)
        assert receipts(tmp_path) < 6, "killed in mid-run"
        out, err = running.communicate()
    assert running.returncode == 0, err
    assert len(err.strip().splitlines()) == 1, "nobody speaks but bench"
    assert out.startswith("mnist_bnn")
    assert "raylet" not in out
    assert stored(tmp_path) == undisturbed


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks into a process through /proc")
def test_ctrl_c_finds_the_workers_server_in_the_midst_of_its_imports(tmp_path: Path) -> None:
    def importing() -> bool:
        return any(
            "libtorch_cpu" in Path(f"/proc/{server}/maps").read_text()
            for server in at_work(running.pid, "forkserver")
        )

    with started(tmp_path, "--workers", "2", alone=True) as running:
        wait_for(running, importing)
        # As a terminal does it: everybody of the group hears of it.
        os.killpg(running.pid, signal.SIGINT)
        _, err = running.communicate()
    assert running.returncode != 0
    assert len(err.strip().splitlines()) == 1, "nobody speaks but bench"
    assert not list(tmp_path.glob("runs/*/shards/*"))


@pytest.mark.fault
@pytest.mark.parametrize("name", [RAY])
def test_a_node_removed_in_mid_run_changes_nothing(
    tmp_path: Path, undisturbed: dict[str, bytes], request: pytest.FixtureRequest, name: str
) -> None:
    cluster = request.getfixturevalue("cluster")
    node = cluster.add_node(num_cpus=1, object_store_memory=2**27)
    raylet = node.all_processes["raylet"][0].process.pid
    with started(tmp_path, *WORDS[name][:2], "--address", cluster.address) as running:
        wait_for(running, lambda: at_work(raylet, "ray::bench"))
        cluster.remove_node(node, allow_graceful=False)
        assert receipts(tmp_path) < 6, "removed in mid-run"
        out, err = running.communicate()
    assert running.returncode == 0, err
    assert len(err.strip().splitlines()) == 1, "nobody speaks but bench"
    assert out.startswith("mnist_bnn")
    assert "raylet" not in out
    assert stored(tmp_path) == undisturbed


@pytest.mark.parametrize("name", [RAY])
def test_ctrl_c_ends_a_cluster_of_our_own(tmp_path: Path, undisturbed: dict[str, bytes], name: str) -> None:
    with started(tmp_path, *WORDS[name]) as running:
        wait_for(running, lambda: receipts(tmp_path) >= 1)
        below = descendants(running.pid)
        os.kill(running.pid, signal.SIGINT)
        _, err = running.communicate()
    assert running.returncode == 1
    assert err.strip().splitlines() == [
        "bench: error: interrupted; what was finished is stored, and the same command goes on from there"
    ]
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}/exe").exists() for pid in below) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in below if Path(f"/proc/{pid}/exe").exists()], "nobody is left behind"
    with started(tmp_path, "--executor", "serial") as again:
        again.communicate()
    assert stored(tmp_path) == undisturbed


def test_a_worker_of_other_versions_computes_nothing() -> None:
    spec = RunSpec(("mnist_relu",), ("native/fgsm",), "mnist", 10, {"linf": (0.1,)})
    (cell,) = cells_of(spec, {"mnist_relu": ""})
    (task,) = tasks_of(cell, spec)
    driver = Driver.here()
    (outcome,) = attempt((task,), driver)  # type: ignore[misc]
    assert isinstance(outcome, Outcome)
    found = attempt((task,), replace(driver, versions={**driver.versions, "torch": "1.0"}))
    assert isinstance(found, Failure)
    assert f"it has torch {torch.__version__}".split("+")[0] in found.message
    assert found.exit_code == 2
    lacking = attempt((task,), replace(driver, versions={**driver.versions, "a-plug-in": "1.0"}))
    assert isinstance(lacking, Failure)
    assert "it has no a-plug-in" in lacking.message


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_a_line_says_how_to_get_it(cli: Cli) -> None:
    answer = cli("run", "--model", "mnist_bnn", "--attack", "fgsm", "--executor", "ray")
    assert answer.code == 2
    assert "pip install 'adversarial-bench[ray]'" in answer.complaint


@pytest.mark.skipif(shutil.which("srun") is not None, reason="Slurm is installed")
def test_without_slurm_a_line_says_so(cli: Cli) -> None:
    answer = cli("run", "--model", "mnist_bnn", "--attack", "fgsm", "--executor", "slurm")
    assert answer.code == 2
    assert ("no srun" if find_spec("submitit") else "adversarial-bench[slurm]") in answer.complaint


@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_a_cluster_that_does_not_answer(cli: Cli, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
    for address in (f"127.0.0.1:{port}", "127.0.0.1", "nowhere:x"):
        answer = cli(
            "run", "--model", "mnist_bnn", "--attack", "fgsm", "--executor", "ray", "--address", address
        )
        assert answer.code == 2
        assert f"no Ray cluster answers at '{address}'" in answer.complaint
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--address", "auto"], "--address goes with"),
        (["--executor", "processes", "--address", "auto"], "--address goes with"),
        (["--executor", "serial", "--workers", "2"], "one worker"),
        (["--executor", "serial", "--timeout", "5"], "--timeout takes another one"),
        (["--executor", "slurm", "--address", "there"], "local alone"),
        (["--executor", "dask"], "'dask'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_do_not_go_together(cli: Cli, words: list[str], complaint: str) -> None:
    answer = cli("run", "--model", "mnist_bnn", "--attack", "fgsm", *words)
    assert answer.code == 2
    assert complaint in answer.complaint
