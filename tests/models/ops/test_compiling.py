import os
import subprocess
import sys

import pytest

from models.ops import compiling


@pytest.fixture
def environment(tmp_path, monkeypatch) -> dict[str, str]:
    """Numba keeps its code in a folder of the test."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiling, "_compilers", [])
    return dict(os.environ)


def test_a_first_run_compiles_in_processes_and_a_second_one_nothing(environment, monkeypatch):
    begun, popen = [], subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: begun.append((command, options)))
    compiling.start()
    assert [command[-1] for command, _ in begun] == list(compiling.LAST_OF)
    for command, options in begun:
        assert popen(command, cwd=options["cwd"], env=environment).wait() == 0
    begun.clear()
    compiling.start()
    assert begun == []


def test_only_the_first_rank_of_a_machine_compiles(environment, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(subprocess, "Popen", None)
    compiling.start()
    compiling.finish()


def test_whoever_needs_the_code_waits_for_all_processes(environment):
    compiling._compilers += [subprocess.Popen([sys.executable, "-c", ""]) for _ in range(2)]
    compiling.finish()
    assert [process.poll() for process in compiling._compilers] == [0, 0]
