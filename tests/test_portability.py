"""The commands on a system that lacks what only POSIX or Linux has.

Windows and macOS are not here, so what they lack is taken away from this one: see CONTRIBUTING.md on what that shows.
"""

import ast
import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

import main
from preprocessing.dataset import FILES, DataError, lock_beside, locked, machine, sync
from preprocessing.dataset import folder as folders

ROOT = Path(main.__file__).resolve().parent
OF_ONE_SYSTEM = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog", "readline", "msvcrt",
                 "winreg", "_winapi"}
# Imported by every process at its start. psutil goes first: on Linux it asks os.sysconf itself; so does PyTorch with
# os.register_at_fork, which stays.
TAKEN_AWAY = """
import multiprocessing, os, signal, sys, warnings
import psutil
for name in ("fork", "forkpty", "sysconf", "sched_getaffinity"):
    vars(os).pop(name, None)
for name in ("SIGALRM", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGUSR1", "SIGUSR2", "alarm", "pause"):
    vars(signal).pop(name, None)
for name in ("fcntl", "resource"):
    sys.modules[name] = None
multiprocessing.set_start_method("spawn")
ours = "(main|rec|models|preprocessing|training|recommending)"
warnings.filterwarnings("error", category=EncodingWarning, module=ours)
"""
COMMANDS = """
import json, os, sys
from types import SimpleNamespace
raw_dir, folder = sys.argv[1:]
import main, rec
from preprocessing import netflix_preprocess, parsing
from preprocessing.dataset import folder as folder_module
missing = [name for name in ("fork", "sysconf", "sched_getaffinity") if not hasattr(os, name)]
folder_module.ctypes = SimpleNamespace(CDLL=lambda *_, **__: None)  # which has no renameat2
parsing.RANGE_BYTES, parsing.num_cores = 100_000, lambda: 2
data, run = ["--data_dir", f"{folder}/data"], ["--run_dir", f"{folder}/run"]
preprocess = ["--raw_dir", raw_dir, "--out_dir", f"{folder}/data"]
codes = [netflix_preprocess.main([*preprocess, "--seed", "1"])]
parsing.RANGE_BYTES = 1 << 20
codes += [netflix_preprocess.main(preprocess)]  # in the place of the first
small = ["--embedding_dim", "8", "--ensemble_size", "1", "--hidden_dim", "8", "--num_threads", "1"]
codes += [main.main([*data, *run, *small, "--epochs", "1"]), main.main([*data, *run, *small, "--eval_only"])]
codes += [rec.main([*data, *run, "--explain"]), rec.main([*data, *run, "--all_users", "--out", f"{folder}/recs.csv"]),
          rec.main([*data, *run, "--export_vectors", f"{folder}/vectors"])]
print(json.dumps([missing, codes]))
"""


def program_files(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted([*ROOT.glob("*.py"), *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


STAGES = ("preprocessing", "models", "training", "recommending", "benchmarks")


def test_no_module_of_one_operating_system_is_imported_at_the_top():
    for path, tree in program_files(*STAGES, "tests"):
        names = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
        assert not names & OF_ONE_SYSTEM, path


def test_whoever_reads_or_writes_text_names_its_encoding():
    """What is not named is UTF-8 here, and another encoding on Windows."""
    for path, tree in program_files(*STAGES):
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            keywords = {keyword.arg: keyword.value for keyword in call.keywords}
            modes = [node.value for node in [*call.args[1:2], keywords.get("mode")] if isinstance(node, ast.Constant)]
            opens = called == "open" and isinstance(call.func, ast.Name) and not any("b" in mode for mode in modes)
            runs = called in ("run", "Popen", "check_output") and "text" in keywords
            is_text = opens or runs or called in ("read_text", "write_text")
            assert not is_text or "encoding" in keywords, f"{path}, line {call.lineno}"


def test_the_commands_need_nothing_that_one_operating_system_has(raw_dir, data_dir, tmp_path):
    """The data set is the same, byte by byte, whoever parses it and however it is put in its place."""
    (tmp_path / "sitecustomize.py").write_text(TAKEN_AWAY, encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNDEFAULTENCODING": "1", "PYTHONUTF8": "0",
                   "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", COMMANDS, str(raw_dir), str(tmp_path)], env=environment,
                          cwd=tmp_path, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    missing, codes = json.loads(done.stdout.splitlines()[-1])
    assert (missing, codes) == (["fork", "sysconf", "sched_getaffinity"], [0] * 7), done.stderr
    for name in FILES:
        assert (tmp_path / "data" / name).read_bytes() == (data_dir / name).read_bytes(), name
    assert {path.name for path in tmp_path.iterdir()} - {"sitecustomize.py", "__pycache__"} == {
        "data", "run", "recs.csv", "vectors"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "best.pt", "last.pt", "metrics.csv", "test_metrics.json", "training.png"}


# --- a folder's exchange in two steps ----------------------------------------------------------------------------


@pytest.fixture
def two_steps(tmp_path, monkeypatch) -> SimpleNamespace:
    """A data set, on a system that cannot swap two names."""
    monkeypatch.setattr(folders, "ctypes", SimpleNamespace(CDLL=lambda *_, **__: None))
    out = tmp_path / "out"
    out.mkdir()
    (out / "meta.json").write_bytes(b"older")

    def replace(content: bytes = b"newer") -> None:
        with folders.replace_dataset(out) as folder:
            (folder / "meta.json").write_bytes(content)

    def state() -> dict[str, bytes]:
        return {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    return SimpleNamespace(out=out, replace=replace, state=state)


def test_a_folder_takes_the_place_of_another_in_two_steps(two_steps):
    two_steps.replace()
    assert two_steps.state() == {str(Path("out", "meta.json")): b"newer"}


def test_the_older_folder_is_put_back_where_the_second_step_fails(two_steps, monkeypatch):
    rename = Path.rename

    def refused(path: Path, target: Path) -> Path:
        if path.name == ".out.partial":
            raise PermissionError(13, "a file in it is open", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(PermissionError):
        two_steps.replace()
    assert two_steps.state() == {str(Path("out", "meta.json")): b"older"}


def test_a_run_killed_between_the_two_steps_loses_nothing(two_steps):
    aside = two_steps.out.with_name(".out.partial.old")
    two_steps.out.rename(aside)
    with pytest.raises(ValueError, match="a mistake"), folders.replace_dataset(two_steps.out):
        raise ValueError("a mistake")
    assert two_steps.state() == {str(Path("out", "meta.json")): b"older"}
    aside.mkdir()
    (aside / "meta.json").write_bytes(b"older still")
    two_steps.replace()
    assert two_steps.state() == {str(Path("out", "meta.json")): b"newer"}


# --- one thing at a time -----------------------------------------------------------------------------------------


def test_a_lock_is_held_by_one_and_leaves_nothing(tmp_path):
    lock = lock_beside(tmp_path / "recs.csv")
    for _ in range(2):
        with locked(lock, "first"):
            assert [path.name for path in tmp_path.iterdir()] == [".recs.csv.lock"]
            with pytest.raises(DataError, match="held"), locked(lock, "held"):
                pass
            assert lock.exists()
        assert not list(tmp_path.iterdir())


def test_windows_syncs_files_that_it_may_write_to_and_no_folders(tmp_path, monkeypatch):
    path, opened, really_open = tmp_path / "file", [], os.open
    path.write_bytes(b"text")
    monkeypatch.setattr(os, "open", lambda *args: opened.append(args) or really_open(*args))
    with monkeypatch.context() as patch:
        patch.setattr(os, "name", "nt")
        sync(path)
        sync(tmp_path)
    assert opened == [(path, os.O_RDWR)]


def test_without_the_figures_of_posix_the_peak_is_what_psutil_says(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    assert 0 < machine.peak_rss_mib() < psutil.virtual_memory().total / 2**20
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _: SimpleNamespace(rss=2**20, peak_wset=3 << 20))
    assert machine.peak_rss_mib() == machine.peak_rss_mib(with_children=True) == 3


@pytest.mark.parametrize(("platform", "mib"), [("linux", 3072), ("darwin", 3)])
def test_linux_gives_the_peak_in_kib_and_macos_in_bytes(monkeypatch, platform, mib):
    usage = SimpleNamespace(ru_maxrss=3 << 20)
    monkeypatch.setitem(sys.modules, "resource", SimpleNamespace(RUSAGE_SELF=0, RUSAGE_CHILDREN=1,
                                                                 getrusage=lambda who: usage))
    monkeypatch.setattr(machine, "sys", SimpleNamespace(platform=platform))
    assert (machine.peak_rss_mib(), machine.peak_rss_mib(with_children=True)) == (mib, 2 * mib)


def test_where_cores_cannot_be_dealt_out_all_are_counted(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3}, raising=False)
    assert machine.num_cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    assert machine.num_cores() == 5


@pytest.mark.parametrize(("platform", "forks", "expected"), [
    ("linux", True, "fork"), ("linux", False, "spawn"), ("darwin", True, "spawn"), ("win32", False, "spawn")])
def test_processes_are_forked_on_linux_alone(monkeypatch, platform, forks, expected):
    monkeypatch.setattr(machine, "sys", SimpleNamespace(platform=platform))
    monkeypatch.setattr(machine, "os", SimpleNamespace(fork=None) if forks else SimpleNamespace())
    assert machine.start_method() == expected


def test_a_process_knows_whether_its_parent_still_runs(monkeypatch):
    assert machine.has_parent(os.getppid()) and not machine.has_parent(os.getpid())
    monkeypatch.setattr(psutil.Process, "parent", lambda _: None)  # Windows keeps the number of one that has ended
    monkeypatch.setattr(sys, "platform", "win32")
    assert not machine.has_parent(os.getppid())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows' processes keep the time at which they began")
def test_a_clock_that_is_set_leaves_a_process_its_parent(monkeypatch):
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: 1.0 + (process.pid == os.getppid()))
    assert psutil.Process().parent() is None  # so it looks by the clock
    assert machine.has_parent(os.getppid())


@pytest.mark.parametrize(("platform", "variable", "expected"), [
    ("linux", None, [(-3, 2**28), (-1, 2**31 - 1)]), ("linux", "MALLOC_ARENA_MAX", []), ("darwin", None, [])])
def test_freed_memory_is_kept_by_glibc_unless_the_environment_says_otherwise(platform, variable, expected, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_TUNABLES"))]:
        monkeypatch.delenv(name)
    if variable:
        monkeypatch.setenv(variable, "1")
    calls = []
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=lambda *of: calls.append(of)))
    machine.keep_freed_memory()
    assert calls == expected


def test_another_c_library_than_glibc_has_no_say(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    machine.keep_freed_memory()
