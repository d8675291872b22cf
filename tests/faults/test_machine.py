"""A machine that fails a run: the driver killed at any moment, disks, clocks; then the same command again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import bench
from bench.cli import main
from bench.forks import context
from tests.bench.test_executors import receipts, stored, wait_for
from tests.conftest import Answer

Cli = Callable[..., Answer]
pytestmark = pytest.mark.fault

RUN = (
    "run",
    "--model",
    "mnist_bnn",
    "--attack",
    "fgsm,pgd,pgd_l2,ink,noise",
    "--samples",
    "20",
    "--transfer",
)
SHARDS = 10
KILLS, QUICK = 50, 3
"""Moments at which the driver is killed, and those of them that are no slow tests."""
CLOCKS = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


class Driver:
    """`bench` in a process of its own, by a server that has imported torch: there are fifty to start."""

    def __init__(self, *words: str) -> None:
        self.process = context().Process(target=main, args=(words,))  # type: ignore[attr-defined]
        self.process.start()

    def at_work(self, results: Path) -> None:
        """Waits for the first that it writes."""
        while not (results / "runs").exists():
            assert self.process.is_alive()
            time.sleep(0.002)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], float]:
    """What a run's files hold, and the seconds from its first write to its end."""
    results = tmp_path_factory.mktemp("undisturbed")
    driver = Driver(*RUN, "--workers", "1", "--results", str(results))
    driver.at_work(results)
    start = time.monotonic()
    driver.process.join()
    assert driver.process.exitcode == 0
    files = stored(results)
    assert len(files) == 2 * SHARDS
    return files, time.monotonic() - start


@pytest.mark.parametrize(
    "moment", [pytest.param(i, marks=[pytest.mark.slow] * (i >= QUICK)) for i in range(KILLS)]
)
def test_a_driver_killed_at_any_moment(
    cli: Cli,
    tmp_path: Path,
    undisturbed: tuple[dict[str, bytes], float],
    record_property: Callable[[str, object], None],
    moment: int,
) -> None:
    files, seconds = undisturbed
    words = (*RUN, "--results", str(tmp_path))
    # With workers a driver starts a server of its own for them, which takes seconds.
    driver = Driver(*words, "--workers", "2" if moment % 10 == 1 else "1")
    driver.at_work(tmp_path)
    progress = SHARDS * random.Random(moment).random()
    while receipts(tmp_path) < int(progress) and driver.process.is_alive():
        time.sleep(0.001)
    time.sleep(seconds / SHARDS * (progress % 1))
    driver.process.kill()
    driver.process.join()
    left = receipts(tmp_path)
    record_property("shards", left)
    status = cli("status", "--results", str(tmp_path))
    assert status.code == 0 or not list(tmp_path.glob("runs/*/shards")), status.err
    again = cli(*words, "--workers", "1")
    assert again.code == 0, again.err
    assert f"{SHARDS - left} shards computed, {left} taken" in again.err, "a receipt is a promise"
    assert stored(tmp_path) == files


def _killed_in_a_write(words: tuple[str, ...], size: int) -> None:
    import resource

    # Python ignores the signal of a file that may not grow; its default is to end the process on the spot.
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    main(words)


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs a limit on a file's size")
def test_a_driver_killed_in_the_middle_of_a_file(cli: Cli, tmp_path: Path) -> None:
    words = ("run", "--model", "mnist_relu", "--attack", "fgsm", "--samples", "20", "--workers", "1")
    assert cli(*words, "--results", str(tmp_path / "undisturbed")).code == 0
    there = (*words, "--results", str(tmp_path / "results"))
    images = max(len(file) for file in stored(tmp_path / "undisturbed").values())
    driver = context().Process(target=_killed_in_a_write, args=(there, images // 2))  # type: ignore[attr-defined]
    driver.start()
    driver.join()
    assert driver.exitcode == -signal.SIGXFSZ
    assert stored(tmp_path / "results"), "it left half a file"
    assert cli(*there).code == 0
    assert stored(tmp_path / "results") == stored(tmp_path / "undisturbed")


Mount = Callable[..., None]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Makes a disk of the results' folder, or changes its options."""
    disk = tmp_path / "results"
    disk.mkdir()

    def change(*options: str) -> None:
        asked = [
            "mount",
            "-o",
            ",".join(options),
            *(() if "remount" in options else ("-t", "tmpfs", "tmpfs")),
        ]
        done = subprocess.run([*asked, str(disk)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a disk cannot be mounted here: {done.stderr.strip()}")

    yield change
    subprocess.run(["umount", str(disk)], capture_output=True)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
@pytest.mark.parametrize("size", ["4k", "100k", pytest.param("160k", marks=pytest.mark.slow)])
def test_a_full_disk(cli: Cli, tmp_path: Path, mount: Mount, size: str) -> None:
    words = ("run", "--model", "mnist_relu", "--attack", "logit_ascent,fgsm,corners", "--samples", "20")
    words = (*words, "--workers", "1")
    assert cli(*words, "--results", str(tmp_path / "undisturbed")).code == 0
    mount(f"size={size}")
    answer = cli(*words)
    assert answer.code in (1, 2)
    assert f"cannot write to {tmp_path / 'results'}" in answer.complaint
    assert "No space left" in answer.complaint
    assert not list(tmp_path.rglob("*.partial"))
    left = receipts(tmp_path / "results")
    assert left == {"4k": 0, "100k": 1, "160k": 2}[size]
    mount("remount", "size=4m")
    again = cli(*words)
    assert again.code == 0
    assert f"{3 - left} shards computed, {left} taken" in again.err
    assert stored(tmp_path / "results") == stored(tmp_path / "undisturbed")


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_a_folder_that_may_only_be_read(cli: Cli, tmp_path: Path, mount: Mount) -> None:
    words = ("run", "--model", "mnist_relu", "--samples", "20", "--workers", "1", "--attack")
    assert cli(*words, "fgsm,corners", "--results", str(tmp_path / "undisturbed")).code == 0
    mount("size=4m")
    assert cli(*words, "fgsm").code == 0
    mount("remount", "ro")
    answer = cli(*words, "fgsm,corners")
    assert answer.code == 2
    assert "Read-only file system" in answer.complaint
    # What needs no writing goes on.
    assert cli("status").code == 0
    assert cli("verify", "latest").code == 0
    mount("remount", "rw")
    again = cli(*words, "fgsm,corners", "--json")
    assert again.code == 0
    found = {
        name: (Path(again.json["path"]) / name).read_bytes() for name in stored(tmp_path / "undisturbed")
    }
    assert found == stored(tmp_path / "undisturbed")


@pytest.mark.slow
@pytest.mark.skipif(not CLOCKS, reason="takes libfaketime (Debian's package faketime)")
def test_a_clock_that_goes_backwards(
    cli: Cli, tmp_path: Path, undisturbed: tuple[dict[str, bytes], float]
) -> None:
    clock = tmp_path / "clock"
    clock.write_text("+0")
    # As clocks are set: the time of day jumps, the clock that only ever counts on does not.
    faked = {
        "LD_PRELOAD": str(CLOCKS[0]),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "PYTHONPATH": str(Path(bench.__file__).parents[1]),
    }
    results = tmp_path / "results"
    command = [sys.executable, "-c", "from bench.cli import main; main()", *RUN, "--results", str(results)]
    with subprocess.Popen(
        # In processes with a deadline, which a clock could bring forward.
        [*command, "--workers", "1", "--timeout", "3600"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **faked},
    ) as running:
        try:
            for count, jump in ((1, "-2d"), (3, "+2d"), (5, "-40y")):
                wait_for(running, lambda count=count: receipts(results) >= count)
                clock.write_text(jump)
            _, err = running.communicate()
        finally:
            running.kill()
    assert running.returncode == 0, err
    assert "crashed" not in err
    assert stored(results) == undisturbed[0]
    again = cli(*RUN, "--workers", "1")
    assert f"0 shards computed, {SHARDS} taken" in again.err
