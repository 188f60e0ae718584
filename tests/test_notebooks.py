"""notebooks/tour.ipynb: every cell runs, on a small data set, and what is committed is what its cells show."""

from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from notebooks.execute import NOTEBOOK, execute, source_digest


@pytest.fixture
def tour(monkeypatch, tmp_path, data_dir, run_dir):
    """The notebook, to be run on the data set of the tests; its kernel leaves nothing behind."""
    for name, folder in {"DATA_DIR": data_dir, "RUN_DIR": run_dir, "IPYTHONDIR": tmp_path,
                         "JUPYTER_RUNTIME_DIR": tmp_path}.items():
        monkeypatch.setenv(name, str(folder))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # pictures shall go into the notebook
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(notebook):
    """What kinds of output each cell shows: text, table, picture."""
    return [(cell.id, [sorted(output.get("data", {"text": ""})) for output in cell.outputs])
            for cell in code_cells(notebook)]


def test_every_cell_runs_on_a_small_data_set_and_shows_what_the_committed_one_shows(tour):
    committed = shown(tour)
    for cell in code_cells(tour):
        cell.outputs = []
    execute(tour)
    assert shown(tour) == committed


def test_a_cell_that_raises_is_an_error(tour):
    tour.cells = [nbformat.v4.new_code_cell("1 / 0")]
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        execute(tour)


def test_committed_outputs_are_those_of_the_present_source():
    """If this fails, run `make notebook`."""
    cells = code_cells(nbformat.read(NOTEBOOK, as_version=4))
    assert [cell.metadata["source_sha256"] for cell in cells] == [source_digest(cell) for cell in cells]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs) == 4
    assert all(cell.outputs for cell in cells[1:])


def test_the_notebook_is_small_and_names_no_folder_of_a_machine():
    text = Path(NOTEBOOK).read_text(encoding="utf-8")
    assert len(text) < 400_000
    assert str(Path.home()) + "/" not in text and "/tmp/" not in text
