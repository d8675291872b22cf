"""The docs: what a page shows is run and printed again, and every command line in it parses.

A block ```` ```console ```` is run: lines that begin with `$ `, continued by a backslash, and below each an
excerpt of what it prints, `…` standing for anything. A block whose info string has a second word, as in
```` ```python my_model.py ````, is a file that what stands below it finds. Blocks of other languages are not
run.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from bench.cli import VERBS, app

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted(ROOT.glob("docs/**/*.md")) if "plugin-example" not in page.parts),
]
MAIN = "from bench.cli import main; main()"


class Block(NamedTuple):
    """A fenced block: its info string, in words, and what stands in it."""

    info: list[str]
    body: str


class Shown(NamedTuple):
    """A command as a page shows it, and lines of its output."""

    command: str
    lines: list[str]


def blocks(text: str) -> Iterator[Block]:
    for found in re.finditer(r"^ *(`{3,})([^\n`]*)\n(.*?)^ *\1 *$", text, re.DOTALL | re.MULTILINE):
        yield Block(found[2].split(), textwrap.dedent(found[3]))


def commands(body: str) -> Iterator[Shown]:
    for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
        found = re.match(r"(?:.*\\\n)*.*\n?", part)
        assert found
        yield Shown(found[0].strip(), [line for line in part[found.end() :].splitlines() if line.strip()])


def masked(line: str) -> str:
    """The line without what differs between machines: its figures, and the widths that follow from them."""
    if re.fullmatch(r"\d+", line):
        return line  # a number alone is an exit code
    line = re.sub(r"(?<!\w)[-+−](?=\d)", "", line)
    line = re.sub(r"\d+([.,]\d+)*(e[-+]?\d+)?", "0", line)
    return " ".join(re.sub(r"(?<!\S)-+(?!\S)", "--", line).split())


def fits(shown: str, printed: str) -> bool:
    """Is this the line that a page shows? `…` stands for anything."""
    pattern = ".*".join(re.escape(part.strip()) for part in masked(shown).split("…"))
    return re.fullmatch(pattern, masked(printed)) is not None


def missing(shown: list[str], output: str) -> list[str]:
    """The shown lines that the output does not have."""
    printed = output.splitlines()
    return [line for line in shown if not any(fits(line, each) for each in printed)]


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def run(page: Path) -> list[Block]:
    return [
        block for block in blocks(page.read_text()) if block.info[:1] == ["console"] or len(block.info) == 2
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [pytest.param(page, id=named(page)) for page in PAGES if any("$ " in b.body for b in run(page))]
)
def test_a_page_prints_what_it_shows(page: Path, tmp_path: Path) -> None:
    if any("timm:" in block.body for block in run(page)):
        try:
            import timm  # noqa: F401
        except RuntimeError as error:  # a torchvision that was made for another torch
            pytest.skip(f"timm cannot be imported: {error}")
    folder, scripts = tmp_path / "page", tmp_path / "scripts"
    folder.mkdir()
    scripts.mkdir()
    bench = scripts / "bench"
    bench.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c "{MAIN}" "$@"\n')
    bench.chmod(0o755)
    env = {
        **os.environ,
        "PATH": os.pathsep.join([str(scripts), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "BENCH_RESULTS": "results",
    }
    for block in run(page):
        if block.info[0] != "console":
            file = folder / block.info[1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.body)
            continue
        for shown in commands(block.body):
            done = subprocess.run(
                ["bash", "-c", shown.command],
                cwd=folder,
                env=env,
                text=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=300,
            )
            assert done.returncode == 0, f"$ {shown.command}\n{done.stdout}"
            lacking = missing(shown.lines, done.stdout)
            assert not lacking, "\n".join(["not printed:", *lacking, f"by $ {shown.command}", done.stdout])


def lines_of(page: Path) -> Iterator[list[str]]:
    """The words of every line for `bench` on a page: in blocks of shell, and between backticks."""
    text = page.read_text()
    shell = []
    for block in blocks(text):
        if block.info[:1] == ["console"]:
            shell += [shown.command.replace("\\\n", " ") for shown in commands(block.body)]
        elif block.info[:1] in ([], ["sh"]):
            shell += block.body.replace("\\\n", " ").splitlines()
    prose = re.sub(r"^ *(`{3,})[^\n`]*\n.*?^ *\1 *$", "", text, flags=re.DOTALL | re.MULTILINE)
    shell += [" ".join(code.split()) for code in re.findall(r"`(bench [^`]+)`", prose)]
    for line in shell:
        if not re.search(r"(^|[;&|] )bench ", line):
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("();<>|&"):
                if words[:1] == ["bench"]:
                    yield words[1:]
                words = []
            else:
                words.append(word)


def parse(words: list[str]) -> None:
    """Raises click.UsageError for what the command line does not take; opens none of the files named."""
    name, *rest = words
    if name.startswith("-") or not rest:
        assert name in (*VERBS, "--help", "--version")
        return
    with click.Context(app, info_name="bench") as context:
        verb = app.get_command(context, name)
        assert verb is not None
        with click.Context(verb, info_name=name, parent=context) as inner:
            given, beyond, _ = verb.make_parser(inner).parse_args([word for word in rest if word != "…"])
            assert not beyond, f"{beyond} is too much"
            for each in verb.params:
                if each.name in given and each.nargs == 1 and not isinstance(each.type, click.Path):
                    each.type_cast_value(inner, given[each.name])


@pytest.mark.parametrize("page", [pytest.param(page, id=named(page)) for page in PAGES])
def test_every_command_line_parses(page: Path) -> None:
    for words in lines_of(page):
        try:
            parse(words)
        except Exception as error:
            raise AssertionError(f"bench {shlex.join(words)}: {error}") from error


def test_the_test_sees_what_is_wrong() -> None:
    """A command that is not one, a line that was not printed; figures and widths are no matter."""
    with pytest.raises(click.UsageError, match="No such option"):
        parse(["run", "--model", "mnist_cnn", "--attak", "pgd"])
    with pytest.raises(click.UsageError):
        parse(["run", "--model", "mnist_cnn", "--samples", "many"])
    (shown,) = commands("$ bench run \\\n    --model x\nnative/pgd   100.0 [98.1–100.0]  1.8\n…\n2\n")
    assert shown.command.split() == ["bench", "run", "\\", "--model", "x"]
    assert missing(shown.lines, "native/pgd  7.5 [2.0–11]    12\n2\n") == []
    assert missing(shown.lines, "native/pgd  7.5 [2.0–11]  –\n1\n") == [shown.lines[0], "2"]
    assert fits("stored in … (2 shards computed)", "stored in results/runs/1f0c (10 shards computed)")
