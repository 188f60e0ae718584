"""The preprocessing commands as scripts, started in any folder, and the allocator that pyarrow gets."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import preprocessing
from preprocessing import movielens_preprocess, netflix_preprocess, synthetic_netflix, table_preprocess

ROOT = str(Path(__file__).resolve().parents[2])
ALLOCATOR = "ARROW_DEFAULT_MEMORY_POOL"
PRINT_ALLOCATOR = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit:
    import pyarrow
    print(pyarrow.default_memory_pool().backend_name)
"""


@pytest.mark.parametrize("command", [netflix_preprocess, movielens_preprocess, table_preprocess,
                                     synthetic_netflix])
def test_a_script_finds_the_packages_beside_its_folder(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != ROOT])
    monkeypatch.setattr(sys, "argv", [command.__file__, "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(command.__file__, run_name="__main__")
    assert sys.path[0] == ROOT
    assert capsys.readouterr().out.startswith(f"usage: {Path(command.__file__).name} ")


@pytest.mark.parametrize("command", [netflix_preprocess, movielens_preprocess, table_preprocess])
def test_a_script_s_tables_are_in_memory_of_the_system_s_allocator(command, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in (ALLOCATOR, "PYTHONPATH")}
    done = subprocess.run([sys.executable, "-c", PRINT_ALLOCATOR, command.__file__, "--help"], cwd=tmp_path,
                          env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "system"


@pytest.mark.parametrize(("named", "taken"), [("", "system"), ("mimalloc", "mimalloc")])
def test_the_allocator_is_the_system_s_unless_the_environment_names_one(monkeypatch, named, taken):
    monkeypatch.setenv(ALLOCATOR, named)
    if not named:
        monkeypatch.delenv(ALLOCATOR)
    runpy.run_path(preprocessing.__file__)
    assert os.environ[ALLOCATOR] == taken
