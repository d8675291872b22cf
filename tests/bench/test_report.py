"""The report: what its pages say, what they refuse to say, and how they behave in a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from bench import leaderboard
from bench.cli import main
from bench.metrics import rate
from bench.render.table import percent
from bench.report.site import END, order, slug
from bench.store import RunFolder
from bench.views import transfer_rates
from tests.conftest import Answer

Cli = Callable[..., Answer]
HOSTILE = "<script>alert(1)</script>"
"""In the path of a user's model, and so in its name."""
USERS = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
"""
PAGES = (
    "index.html",
    "models/mnist_bnn.html",
    "attacks/native~pgd.html",
    "attacks.html",
    "transfers.html",
    "gallery.html",
    "times.html",
    "runs.html",
)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small store, `results`, and its report, `site`: made once for all test processes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "report"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / ".lock"):
        if not (folder / "site").exists():
            model = folder / f"{HOSTILE}.py"
            model.parent.mkdir()
            model.write_text(USERS)
            rest = ["--samples", "20", "--workers", "1", "--results", str(folder / "results")]
            attacks = ["--attack", "pgd,ink,foolbox/fmn_linf", "--eps", "0.1"]
            _run("transfer", "--models", "mnist_cnn,mnist_bnn", *attacks, "--no-figure", *rest)
            _run("run", "--model", "mnist_bnn", "--attack", "fgsm", "--eps", "0.01", "--certify", *rest)
            _run("run", "--model", f"{model}:build", "--attack", "fgsm", *rest)
            _run("report", "--out", str(folder / "site"), "--results", str(folder / "results"))
    return folder


def _run(*words: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    assert not stopped.value.code


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """The store, to be spoilt; it is where `cli` looks for results."""
    shutil.copytree(made / "results", tmp_path / "results")
    return tmp_path / "results"


class Parsed(HTMLParser):
    """A page's links, tables and text."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.tags: list[str] = []
        self.text = ""
        self.within = False
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src") and value]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.within = True

    def handle_endtag(self, tag: str) -> None:
        self.within = self.within and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.within:
            self.tables[-1][-1][-1] += data.strip()

    def records(self, table: int = 0) -> list[dict[str, str]]:
        head, *rows = self.tables[table]
        return [dict(zip(head, row)) for row in rows]


def gallery(site: Path) -> list[dict[str, Any]]:
    """What the gallery's page knows of its pictures."""
    found = re.search(r'id="cells">(.*?)</script>', (site / "gallery.html").read_text(), re.S)
    assert found
    cells: list[dict[str, Any]] = json.loads(found[1])["cells"]
    return cells


def test_every_link_leads_to_a_page_and_nothing_to_the_network(made: Path) -> None:
    site = made / "site"
    pages = sorted(site.rglob("*.html"))
    assert set(PAGES) <= {str(page.relative_to(site)) for page in pages}
    for page in pages:
        for link in Parsed(page).links:
            target = link.partition("#")[0]
            if target and target != "data:,":
                assert "://" not in target
                assert (page.parent / unquote(target)).is_file(), (page, link)


def test_the_leaderboard_has_every_standing_with_its_interval_and_n(made: Path) -> None:
    shown = Parsed(made / "site" / "index.html").records()
    found, _ = leaderboard.standings(made / "results")
    assert len(shown) == len(found)
    for line, standing in zip(shown, found):
        assert line["model"] == standing.case.model
        assert line["robust %"] == percent(standing.case.robust_accuracy)
        assert line["clean %"] == percent(standing.case.clean_accuracy)
        assert line["n"] == "20"
        assert line["audit"] == "not audited"
        assert line["flags"] == "; ".join(standing.flags)
    certified = [line for line in shown if line["certified %"] != "–"]
    assert [line["model"] for line in certified] == ["mnist_bnn"]
    assert certified[0]["threat"] == "linf(0.01)"


def test_a_models_page_has_its_card_its_attacks_and_its_confusion(made: Path) -> None:
    page = Parsed(made / "site" / "models" / "mnist_bnn.html")
    assert "99.2 [99.0–99.3], n = 10000" in page.text
    assert "not audited" in page.text
    tables = {tuple(table[0]): page.records(i) for i, table in enumerate(page.tables)}
    attacks = next(records for head, records in tables.items() if "success %" in head)
    names = {line["attack"] for line in attacks}
    assert names == {"native/pgd", "native/ink", "native/fgsm", "foolbox/fmn_linf"}
    pgd = next(line for line in attacks if line["attack"] == "native/pgd")
    rows = next((made / "results" / "runs").glob("mnist_cnn+*"))
    own = leaderboard.own_rows(RunFolder(made / "results", rows.name).rows())
    cell = own[(own["attack"] == "native/pgd") & (own["model"] == "mnist_bnn")]
    right = cell[cell["label"] == cell["clean_label"]]
    assert pgd["success %"] == percent(rate(int(right["success"].sum()), len(right)))
    assert pgd["attacked"] == str(len(right))
    confusions = [records for head, records in tables.items() if head[0] == "true"]
    assert confusions
    for records in confusions:
        assert sum(int(line["n"]) for line in records) == 20
        for line in records:
            counts = [int(value) for key, value in line.items() if key not in ("true", "n") and value != "·"]
            assert sum(counts) == int(line["n"])


def test_curves_are_drawn_from_data_on_the_page_with_an_alternative(made: Path) -> None:
    text = (made / "site" / "models" / "mnist_cnn.html").read_text()
    charts = re.findall(r'role="img" aria-label="(.*?)"><script type="application/json">(.*?)</script>', text)
    assert charts
    for described, spec in charts:
        values = json.loads(spec)["data"]["values"]
        assert all(point["low"] <= point["robust"] <= point["high"] and point["n"] == 20 for point in values)
        assert [point["robust"] for point in values] == sorted((p["robust"] for p in values), reverse=True)
        assert "n = 20" in described


def test_an_attacks_page_has_its_entry_of_the_catalogue(made: Path) -> None:
    page = Parsed(made / "site" / "attacks" / "native~pgd.html")
    assert "1706.06083" in page.text
    assert {line["model"] for line in page.records()} == {"mnist_cnn", "mnist_bnn"}
    assert all(line["fwd"] != "–" and line["n"] == "20" for line in page.records())


def test_transfers_are_those_of_the_rows(made: Path) -> None:
    page = Parsed(made / "site" / "transfers.html")
    run = next((made / "results" / "runs").glob("mnist_cnn+*"))
    names = ["mnist_cnn", "mnist_bnn"]
    rates = transfer_rates(RunFolder(made / "results", run.name).rows(), names)
    assert len(page.tables) == len(rates) == 3
    shown = {cell for table in page.tables for line in table[1:] for cell in line[1:]}
    for of_attack in rates.values():
        for line in of_attack.values():
            for found in line.values():
                assert found is not None
                assert (f"{percent(found)}n = {found.n}" if found.n else "–") in shown


def test_the_gallery_shows_the_stored_images(made: Path, mnist: tuple[Tensor, Tensor]) -> None:
    cells = gallery(made / "site")
    assert {cell["model"] for cell in cells} > {"mnist_cnn", "mnist_bnn"}
    cell = next(c for c in cells if c["attack"] == "native/pgd" and c["model"] == "mnist_bnn")
    assert len(cell["images"]) == 10
    assert len({image[0] for image in cell["images"]}) > 5
    pixels = np.asarray(Image.open(made / "site" / cell["file"]))
    assert pixels.shape == (280, 84)
    run = next((made / "results" / "runs").glob("mnist_cnn+*"))
    folder = RunFolder(made / "results", run.name)
    rows = folder.rows()
    own = leaderboard.own_rows(rows)
    key = own.loc[(own["attack"] == "native/pgd") & (own["model"] == "mnist_bnn"), "cell"].iloc[0]
    stored = load_file(next(folder.adversarial.glob(f"{key}-*")))
    for i, image in enumerate(cell["images"]):
        sample = image[7]
        line = pixels[28 * i : 28 * (i + 1)]
        assert (line[:, :28] == (mnist[0][sample, 0] * 255).round().numpy()).all()
        there = stored["images"][stored["sample_id"].tolist().index(sample), 0]
        assert (line[:, 56:] == (there * 255).round().numpy()).all()
        assert image[0] == str(int(mnist[1][sample]))


def test_a_gallery_has_as_many_images_as_were_asked_for(copied: Path, cli: Cli, tmp_path: Path) -> None:
    assert cli("report", "--images", "3").code == 0
    assert {len(cell["images"]) for cell in gallery(copied / "report")} == {3}
    assert "At most 3 images per model, attack and radius" in " ".join(
        (copied / "report" / "gallery.html").read_text().split()
    )
    # The earlier report gives way, its pictures too.
    assert cli("report", "--images", "0").code == 0
    assert not list((copied / "report" / "gallery").iterdir())
    assert not list(copied.glob("*.partial"))


def test_a_models_name_is_text(made: Path) -> None:
    for page in (made / "site").rglob("*.html"):
        assert HOSTILE not in page.read_text()
    assert HOSTILE in Parsed(made / "site" / "index.html").text
    for name in ("a/b", "a~b", "a_b", "a:b", "x" * 300, HOSTILE):
        assert re.fullmatch(r"[\w.@+~-]{1,120}", slug(name))
    assert len({slug(name) for name in ("a/b", "a~b", "a_b", "a:b")}) == 4


def test_every_run_is_named_with_its_command_and_versions(made: Path) -> None:
    lines = Parsed(made / "site" / "runs.html").records()
    assert len(lines) == 3
    for line in lines:
        assert line["command"].startswith("bench")
        assert "torch" in line["made with"]


def test_an_empty_store_is_told_in_one_line(cli: Cli, tmp_path: Path) -> None:
    answer = cli("report", "--out", str(tmp_path / "site"))
    assert answer.code == 2
    assert "nothing to report" in answer.complaint
    assert "bench run" in answer.complaint
    assert not (tmp_path / "site").exists()


def test_a_folder_with_other_files_is_left_alone(made: Path, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    answer = cli("report", "--out", str(tmp_path), "--results", str(made / "results"))
    assert answer.code == 2
    assert "holds other files" in answer.complaint
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def _changed(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_runs_that_cannot_be_shown_are_named_and_the_others_shown(copied: Path, cli: Cli) -> None:
    first, second, third = sorted((copied / "runs").glob("*"))
    _changed(first / "run.json", status="running")
    _changed(next((second / "shards").glob("*.json")), schema=1)
    answer = cli("report")
    assert answer.code == 0
    named = [line for line in answer.err.splitlines() if line.startswith("left out: ")]
    assert len(named) == 2
    assert any(first.name in line and "not finished" in line for line in named)
    assert any(second.name in line and "older version" in line for line in named)
    page = Parsed(copied / "report" / "runs.html")
    assert [line["run"] for line in page.records()] == [third.name]
    assert first.name in page.text
    assert second.name in page.text
    assert "2 more left out" in Parsed(copied / "report" / "index.html").text
    _changed(third / "run.json", schema=0)
    answer = cli("report")
    assert answer.code == 2
    assert "of schema 0" in answer.complaint
    # The earlier report is as it was.
    assert (copied / "report" / "index.html").is_file()


def test_what_is_not_here_any_more_is_named_and_its_figures_shown(
    cli: Cli, tmp_path: Path, mnist: tuple[Tensor, Tensor]
) -> None:
    model, images = tmp_path / "mine.py", tmp_path / "mine.npz"
    model.write_text(USERS)
    np.savez(images, images=mnist[0][:20].numpy(), labels=mnist[1][:20].numpy())
    rest = ("--attack", "fgsm", "--samples", "20", "--workers", "1")
    cli("run", "--model", f"{model}:build", "--dataset", f"npz:{images}", *rest)
    assert "not known here" not in cli("report").err
    before = Parsed(tmp_path / "results" / "report" / "index.html").records()
    images.unlink()
    # A process that has read them remembers them.
    code = "from bench.cli import main; main()"
    command = [sys.executable, "-W", "ignore", "-c", code, "report", "--results", str(tmp_path / "results")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    (line,) = (line for line in told.splitlines() if line.startswith("not known here: "))
    assert f"dataset npz:{images}" in line
    site = tmp_path / "results" / "report"
    assert Parsed(site / "index.html").records() == before
    assert not list((site / "gallery").iterdir())
    assert "Not known here" in Parsed(site / "runs.html").text
    (page,) = (site / "models").iterdir()
    heads = [table[0] for table in Parsed(page).tables]
    assert ["true", *map(str, range(10)), "n"] in heads, "classes by their numbers"


@pytest.mark.parametrize(
    ("cell", "number"),
    [("97.0 [91.5–98.9]", 97.0), ("10 000", 10000.0), ("−0.5", -0.5), ("∞", END), ("–", -END)],
)
def test_cells_are_sorted_by_the_number_they_begin_with(cell: str, number: float) -> None:
    assert order(cell) == number


# In a browser.

WIDTHS = (390, 1280)
SCHEMES = ("light", "dark")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Debian's Chromium, driven by Playwright."""
    reason = "playwright is not here: pip install '.[browser]'"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("no chromium here: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=found)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any, made: Path) -> Iterator[Callable[..., Any]]:
    """Opens a page of the report from disk; a word on its console, or to a network, fails the test."""
    contexts, said = [], []

    def open_page(path: str, width: int = 1280, scheme: str = "light") -> Any:
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda asked: said.append(asked.url) if asked.url.startswith("http") else None)
        page.goto((made / "site").as_uri() + "/" + path)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


def _column(page: Any, head: str) -> list[str]:
    heads = [text.strip() for text in page.locator("table >> nth=0").locator("thead th").all_inner_texts()]
    at = next(i for i, text in enumerate(heads) if text.startswith(head))
    return page.locator(f"table >> nth=0 >> tbody tr td:nth-child({at + 1})").all_inner_texts()


@pytest.mark.browser
def test_the_leaderboard_is_sorted_filtered_and_searched_by_keyboard(visit: Callable[..., Any]) -> None:
    page = visit("index.html")
    threat = page.locator("select[name=threat]")
    assert threat.input_value() == "linf(0.01)"
    assert _column(page, "model") == ["mnist_bnn"]
    threat.select_option("ink")
    assert set(_column(page, "model")) == {"mnist_bnn", "mnist_cnn"}
    threat.select_option("all")
    assert set(_column(page, "threat")) == {"linf(0.01)", "linf(0.1)", "ink"}
    every = _column(page, "robust %")
    head = page.locator("thead th", has_text="robust %").locator("[role=button]")
    head.focus()
    page.keyboard.press("Enter")
    ascending = [order(cell) for cell in _column(page, "robust %")]
    assert ascending == sorted(ascending)
    page.keyboard.press("Enter")
    descending = [order(cell) for cell in _column(page, "robust %")]
    assert descending == sorted(descending, reverse=True)
    assert len(descending) == len(every) > 4
    page.get_by_role("searchbox").fill("mnist_bnn")
    assert set(_column(page, "model")) == {"mnist_bnn"}
    page.reload()
    assert threat.input_value() == ""


@pytest.mark.browser
def test_a_model_opens_and_its_curves_are_drawn(visit: Callable[..., Any]) -> None:
    page = visit("index.html#threat=linf(0.1)")
    page.get_by_role("link", name="mnist_cnn", exact=True).first.click()
    assert page.get_by_role("heading", level=1).inner_text() == "mnist_cnn"
    page.wait_for_selector(".chart svg")
    assert page.locator(".chart svg").count() == page.locator(".chart").count() > 0
    page.get_by_role("link", name="native/pgd").first.click()
    assert page.get_by_role("heading", level=1).inner_text() == "native/pgd"


@pytest.mark.browser
def test_the_gallery_is_paged_by_class_and_by_attack(visit: Callable[..., Any]) -> None:
    page = visit("gallery.html")
    figures = page.locator("#gallery figure")
    assert figures.count() == 12
    before = figures.first.inner_text()
    page.get_by_role("button", name="Next").click()
    assert figures.first.inner_text() != before
    page.get_by_role("button", name="Previous").click()
    assert figures.first.inner_text() == before
    page.locator("select[name=attack]").select_option("native/ink")
    page.locator("select[name=class]").select_option("7")
    texts = figures.all_inner_texts()
    assert texts
    assert all("native/ink" in text and "class 7" in text for text in texts)
    assert "attack=native%2Fink" in page.url
    original = figures.first.locator("[role=img]").first
    width = original.evaluate(
        """async span => {
            const image = new Image();
            image.src = getComputedStyle(span).backgroundImage.slice(5, -2);
            await image.decode();
            return image.naturalWidth;
        }"""
    )
    assert width == 84
    assert original.get_attribute("aria-label").startswith("Original, class 7")


@pytest.mark.browser
def test_transfers_are_chosen_by_attack(visit: Callable[..., Any]) -> None:
    page = visit("transfers.html")
    assert page.locator("table:visible").count() == 1
    page.locator("select[name=attack]").select_option("native/ink · ink")
    assert "native/ink" in page.locator("table:visible caption").inner_text()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_shuts_anybody_out_or_runs_over_the_edge(
    visit: Callable[..., Any], width: int, scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    # It would ask for the style sheets once more, which a page from disk may not.
    options = {"preload": False}
    page = visit(PAGES[0], width, scheme)
    for path in PAGES:
        page.goto(page.url[: page.url.index("/site/")] + "/site/" + path)
        if path.startswith("models"):
            page.wait_for_selector(".chart svg")
        found = [
            (violation["id"], node["html"][:200])
            for violation in axe.run(page, options=options).response["violations"]
            if violation["impact"] in ("serious", "critical")
            for node in violation["nodes"]
        ]
        assert found == [], path
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
