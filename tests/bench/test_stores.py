"""Results in a folder, in memory and in an object store; drivers that share them."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

import bench
from bench import locks, store
from bench.locks import Presence, present
from bench.store import RunFolder, location
from tests.bench.test_run import MANY, strip
from tests.conftest import Answer

Cli = Callable[..., Answer]
SERVED = find_spec("moto") is not None and find_spec("s3fs") is not None
needs_server = pytest.mark.skipif(not SERVED, reason="moto or s3fs is not installed")
KINDS = ["folder", "memory", pytest.param("s3", marks=needs_server)]
LONG = ("run", "--model", "mnist_bnn", "--attack", MANY, "--samples", "60", "--workers", "1")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server that speaks S3, with a bucket in it; for this process and those it starts."""
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    app, turns = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def one_by_one(environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        # S3 makes an object that nobody has made in one step. moto looks first and makes it then, and between
        # the two another thread of it may do the same.
        with turns:
            return list(app(environ, start))

    running = make_server("127.0.0.1", 0, one_by_one, threaded=True)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{running.port}"
    with pytest.MonkeyPatch.context() as patched:
        for name, value in (("ENDPOINT_URL", address), ("DEFAULT_REGION", "us-east-1")):
            patched.setenv(f"AWS_{name}", value)
        for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
            patched.setenv(f"AWS_{name}", "anybody")
        boto3.client("s3").create_bucket(Bucket="bench")
        yield address
    running.shutdown()


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store of its own."""
    if request.param == "s3":
        request.getfixturevalue("server")
        return f"s3://bench/{uuid4().hex}"
    return f"memory://{uuid4().hex}" if request.param == "memory" else str(tmp_path / "store")


def begun(url: str, *words: str, beat: float = 0.5) -> subprocess.Popen[str]:
    """A run as a process of its own, which is soon known to be dead."""
    quick = f"from bench import locks; locks.BEAT, locks.STALE = {beat}, {6 * beat}"
    code = f"{quick}; from bench.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *words, "--results", url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(bench.__file__).parents[1])},
    )


def computed(err: str) -> int:
    return int(re.findall(r"(\d+) shards computed", err)[0])


@pytest.mark.parametrize("url", KINDS, indirect=True)
def test_a_shard_is_one_drivers_until_it_leaves(url: str) -> None:
    one, other = RunFolder(location(url), "one"), RunFolder(location(url), "other")
    with Presence(one) as first:
        with Presence(other) as second:
            assert first.take("shard") == (True, [])
            mine, before = second.take("shard")
            assert not mine
            assert [folder.id for folder in before] == ["one"]
            assert first.take("shard")[0], "asked again, it is still its own"
            assert second.take("shard-of-nobody") == (True, [])
            assert [record["pid"] for record in present(one)] == [os.getpid()]
        assert not present(other)
        assert first.take("shard-of-nobody")[0], "the other has left"
        with Presence(other) as third:
            assert not third.take("shard")[0]
            first.release("shard")
            mine, before = third.take("shard")
            assert mine
            assert {folder.id for folder in before} == {"one"}
    assert not present(one)


@pytest.mark.parametrize("url", KINDS, indirect=True)
def test_of_many_who_want_a_shard_one_gets_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "POLL", 0.05)
    folder = RunFolder(location(url), "run")
    got: list[str] = []
    names = [f"shard{i}" for i in range(10 if "s3" in url else 100)]

    def want(driver: Presence) -> None:
        for name in names:
            ready.wait()
            if driver.take(name)[0]:
                got.append(name)

    drivers = [Presence(folder) for _ in range(4)]
    ready = threading.Barrier(len(drivers))
    for driver in drivers:
        driver.__enter__()
    threads = [threading.Thread(target=want, args=(driver,)) for driver in drivers]
    interval = sys.getswitchinterval()
    # Threads that change places between any two lines.
    sys.setswitchinterval(1e-6)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)
    for driver in drivers:
        driver.__exit__(None, None, None)
    assert sorted(got) == sorted(names)


@pytest.mark.parametrize("url", KINDS, indirect=True)
def test_who_cleans_and_who_computes_see_each_other(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "POLL", 0.05)
    folder = RunFolder(location(url), "run")
    with Presence(folder), Presence(folder, cleaning=True) as cleaner:
        assert cleaner.others()
    waited = threading.Event()

    def compute() -> None:
        with Presence(folder, waiting=waited.set) as driver:
            driver.take("shard")

    with Presence(folder, cleaning=True) as cleaner:
        assert not cleaner.others()
        thread = threading.Thread(target=compute)
        thread.start()
        assert waited.wait(10)
        assert not (folder.results / ".locks" / "shard.0").exists()
    thread.join(10)
    assert (folder.results / ".locks" / "shard.0").exists()


@pytest.mark.parametrize("url", KINDS[1:], indirect=True)
def test_in_an_object_store_the_silent_are_given_up_by_the_stores_clock(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.2)
    folder = RunFolder(location(url), "run")
    with Presence(folder) as speaking, Presence(folder) as silent:
        assert speaking.take("spoken")[0]
        assert silent.take("shard")[0]
        # As kill -9 would leave it.
        silent.left.set()
        assert not speaking.take("shard")[0]
        with monkeypatch.context() as soon:
            soon.setattr(locks, "STALE", 2.0)
            deadline = time.monotonic() + 60
            while not speaking.take("shard")[0]:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        with Presence(folder) as third:
            assert not third.take("spoken")[0], "who gives signs of life keeps what is its own"


@needs_server
def test_a_local_clock_that_is_hours_off_changes_nothing(server: str) -> None:
    # In a process of its own, so that the server keeps the right time.
    folder = RunFolder(location(f"s3://bench/{uuid4().hex}"), "run")
    with Presence(folder) as driver:
        assert driver.take("shard")[0]
        code = f"""
import time
true = time.time
time.time = lambda: true() - 7200
from bench.locks import Presence
from bench.store import RunFolder, location
with Presence(RunFolder(location({str(folder.results)!r}), "run")) as driver:
    print(driver.take("shard")[0], driver.take("other")[0])
"""
        env = {**os.environ, "PYTHONPATH": str(Path(bench.__file__).parents[1])}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
        assert done.stdout.split() == ["False", "True"], done.stderr


def test_leftovers_of_a_killed_driver_go_and_those_of_a_live_one_stay(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "run")
    folder.create()
    left = folder.samples / "shard.parquet.0123abcd.partial"
    left.write_text("half")
    record = tmp_path / ".locks" / "drivers" / "run.0123456789ab.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"host": platform.node(), "pid": 1, "started": "", "cleaning": True}))
    with Presence(folder):
        assert not left.exists()
        assert not record.exists()
        left.write_text("half")
        with Presence(folder):
            assert left.exists()


def test_two_who_try_a_folder_at_once_do_not_take_the_others_probe(tmp_path: Path) -> None:
    """In one process, as in two containers, they have the same number."""
    folder, complaints = RunFolder(tmp_path, "run"), []

    def create() -> None:
        try:
            for _ in range(200):
                folder.create()
        except store.StoreError as error:
            complaints.append(error)

    threads = [threading.Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not complaints
    assert not store.listed(folder.path, "**/.probe*")


@pytest.mark.parametrize("url", KINDS, indirect=True)
def test_a_run_is_the_same_wherever_it_is_stored(cli: Cli, url: str) -> None:
    words = ("run", "--model", "mnist_bnn", "--attack", "fgsm,logit_ascent,noise", "--samples", "10")
    words = (*words, "--transfer", "--certify", "--workers", "1")
    there = ("--results", url)
    assert cli(*words, "--dry-run", *there).code == 0
    expected = strip(cli(*words, "--json").json)
    first = cli(*words, "--json", *there)
    assert first.code == 0, first.err
    assert strip(first.json) == expected
    again = cli(*words, *there)
    assert "0 shards computed" in again.err
    folder = store.find(location(url), "latest")
    name = min(folder.receipts.glob("*.json")).stem
    images = folder.images_file(name)
    images.write_bytes(images.read_bytes()[:-1])
    assert "shards computed" in cli(*words, *there).err
    # A run of fewer attacks has its shards from the other.
    fewer = cli(*words[:4], "fgsm", *words[5:7], "--workers", "1", *there)
    assert computed(fewer.err) == 0
    assert len(cli("status", *there, "--json").json["runs"]) == 2
    assert cli("leaderboard", *there).out == (cli("leaderboard").out)
    assert "mnist_bnn" in (location(url) / "leaderboards" / "leaderboard.md").read_text()
    assert cli("verify", str(folder.path), *there).code == 0
    assert cli("clean", folder.id, "--yes", *there).code == 0
    assert [run.id for run in store.folders(location(url))] != [folder.id]


@needs_server
def test_a_folder_that_goes_with_its_last_file_is_empty(server: str) -> None:
    """As `runs` does while the first of two drivers tries whether it may write there."""
    folder, done = location(f"s3://bench/{uuid4().hex}"), threading.Event()

    def come_and_go() -> None:
        while not done.is_set():
            (folder / "runs" / "probe").write_bytes(b"x")
            (folder / "runs" / "probe").unlink()

    other = threading.Thread(target=come_and_go)
    other.start()
    try:
        for _ in range(30):
            assert store.runs(folder) == []
    finally:
        done.set()
        other.join()


@pytest.mark.slow
@pytest.mark.parametrize("url", ["folder", pytest.param("s3", marks=needs_server)], indirect=True)
def test_two_drivers_share_the_work_and_compute_each_shard_once(cli: Cli, url: str) -> None:
    """Of the same run, and of another one that has half of its cells."""
    whole = strip(cli(*LONG, "--json").json)
    half = ",".join(MANY.split(",")[::2])
    # Nobody dies: each gives the signs of life that it would, and none is given up on a slow machine.
    both = [begun(url, *words, beat=locks.BEAT) for words in (LONG, LONG, (*LONG[:4], half, *LONG[5:]))]
    answers = [each.communicate(timeout=600) for each in both]
    assert [each.returncode for each in both] == [0, 0, 0], answers
    shares = [computed(err) for _, err in answers]
    assert sum(shares) == len(whole["cells"]), shares
    assert answers[0][0] == answers[1][0]
    assert strip(cli(*LONG, "--json", "--results", url).json) == whole


@pytest.mark.slow
@needs_server
@pytest.mark.parametrize("url", ["s3"], indirect=True)
def test_a_driver_killed_in_mid_run_is_followed_by_the_same_figures(cli: Cli, url: str) -> None:
    whole = strip(cli(*LONG, "--json").json)
    running = begun(url, *LONG)
    while len(store.listed(location(url), "runs/*/shards/*.json")) < 3:
        assert running.poll() is None, running.communicate()[1]
        time.sleep(0.05)
    os.kill(running.pid, signal.SIGKILL)
    running.communicate()
    finished = len(store.listed(location(url), "runs/*/shards/*.json"))
    assert 3 <= finished < len(whole["cells"])
    again = begun(url, *LONG)
    _, err = again.communicate(timeout=600)
    assert again.returncode == 0, err
    assert computed(err) == len(whole["cells"]) - finished
    assert strip(cli(*LONG, "--json", "--results", url).json) == whole


def refused(cli: Cli, url: str) -> str:
    begun = time.monotonic()
    answer = cli("run", "--model", "mnist_bnn", "--attack", "fgsm", "--samples", "10", "--results", url)
    assert answer.code == 2
    assert time.monotonic() - begun < 20
    return answer.complaint


def test_a_file_system_that_is_not_known_or_not_installed(cli: Cli) -> None:
    assert "Unsupported filesystem: 'nowhere'" in refused(cli, "nowhere://bucket/store")
    if find_spec("gcsfs") is None:
        assert "pip install" in refused(cli, "gs://bucket/store")
    if find_spec("s3fs") is None:
        assert "pip install 'adversarial-bench[s3]'" in refused(cli, "s3://bucket/store")


@needs_server
def test_a_bucket_a_server_or_keys_that_are_not_there(
    cli: Cli, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    assert "is there a 'no-such-bucket'" in refused(cli, "s3://no-such-bucket/store")
    with monkeypatch.context() as away:
        away.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        s3fs.S3FileSystem.clear_instance_cache()
        assert "Could not connect" in refused(cli, "s3://bench/store")
    with monkeypatch.context() as nobody:
        for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
            nobody.delenv(f"AWS_{name}")
        nobody.setenv("AWS_EC2_METADATA_DISABLED", "true")
        nobody.setenv("HOME", "/nowhere")
        s3fs.S3FileSystem.clear_instance_cache()
        assert "credentials" in refused(cli, "s3://bench/store")
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_url_of_this_machine_is_a_folder(tmp_path: Path) -> None:
    assert location(f"file://{tmp_path}") == tmp_path
    assert isinstance(location(f"file://{tmp_path}"), Path)
