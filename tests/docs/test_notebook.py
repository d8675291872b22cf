"""The notebook of the docs: it runs from top to bottom, and what its text claims its cells assert."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "tutorials" / "library.ipynb"
LARGEST = 300_000


def cells(kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == kind]


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("BENCH_RESULTS", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()


def test_the_notebook_can_be_read_without_running() -> None:
    """Its outputs are there, none is an error or a warning, and none names the machine that made it."""
    outputs = [output for cell in cells("code") for output in cell["outputs"]]
    assert len(outputs) >= len(cells("code")) / 2
    kinds = {output["output_type"] for output in outputs}
    assert kinds <= {"stream", "display_data", "execute_result"}
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert str(Path.home()) not in NOTEBOOK.read_text()
    assert NOTEBOOK.stat().st_size < LARGEST


def test_what_the_notebook_claims_is_asserted() -> None:
    assert sum("assert " in "".join(cell["source"]) for cell in cells("code")) >= 8
