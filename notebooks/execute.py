"""Run tour.ipynb from top to bottom and write what its cells show into it.

    python notebooks/execute.py     # reads what `make demo` leaves; `make notebook` does both

DATA_DIR and RUN_DIR in the environment name another data set and run. Each code cell notes the SHA-256 of the source
that its outputs are of, so that a test notices outputs of an older source. Needs requirements-dev.txt.
"""

import hashlib
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).with_name("tour.ipynb")
CELL_SECONDS = 300


def execute(notebook: nbformat.NotebookNode) -> None:
    """Run a notebook's cells and put their outputs into it.

    Raises:
        CellExecutionError: a cell raised; the message ends with its traceback.
    """
    NotebookClient(notebook, timeout=CELL_SECONDS, record_timing=False,
                   resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.metadata["source_sha256"] = source_digest(cell)
    notebook.metadata["language_info"] = {"name": "python"}  # without the version, which would change without need


def source_digest(cell: nbformat.NotebookNode) -> str:
    """Return the SHA-256 of a cell's source."""
    return hashlib.sha256(cell.source.encode()).hexdigest()


if __name__ == "__main__":
    executed = nbformat.read(NOTEBOOK, as_version=4)
    execute(executed)
    nbformat.write(executed, NOTEBOOK)
    print(f"{NOTEBOOK}: {NOTEBOOK.stat().st_size / 1000:,.0f} kB")
