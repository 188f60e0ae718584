"""One of the processes that torchrun starts is killed, hangs or finds the disk full, at each stage: the others end with
a sentence, and what it says to do next leads to what would have been without the fault, bit for bit."""

import csv
import json
import signal
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch

import main
import rec
from models.ops import ranks as processes
from preprocessing.dataset import DataError
from recommending import parts
from tests import ranks
from tests.ranks import ROOT

if not hasattr(signal, "SIGKILL"):
    pytest.skip("processes are ended by signals that Windows lacks", allow_module_level=True)

FLAGS = ["--embedding_dim", "16", "--ensemble_size", "2", "--hidden_dim", "16", "--num_threads", "1", "--epochs", "2",
         "--batch_size", "64", "--refit"]  # 7 steps an epoch, and in either of two epochs best.pt and last.pt
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
KILL_WRITING = f"args[1].write(bytes(9000)); args[1].flush(); {KILL}"
HANG = "os.kill(os.getpid(), signal.SIGSTOP)"
FULL = "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))"  # the system lets no file grow more
ENDED = "another process of the run has ended"
SILENT = "another process of the run has not answered for 2 s"
# A command, but something happens to one rank the n-th time that it calls a function.
FAULTY = """
import os, resource, signal, sys
sys.path.insert(0, {root!r})
import main, rec, torch
from models.ops import ranks as processes
from recommending import batch, parts
from training import report
from training.engine import Engine
from training.trainer import Trainer

parts.GROUPS_PER_PART, left = 1, {number}

def faulty(*args, **kwargs):
    global left
    if os.environ["RANK"] == "{rank}":
        left -= 1
        if left == 0:
            {fault}
    return work(*args, **kwargs)

work, {where} = {where}, faulty
processes.leave({command}.main(sys.argv[1:]))
"""


@pytest.fixture
def run(tmp_path):
    """Return a function that runs a command as some processes, one of which has a fault."""

    def run(command: str, fault: str, where: str, number: int, rank: int, *flags: str, num_ranks: int = 2,
            **environment: str) -> list[CompletedProcess]:
        script = tmp_path / "faulty.py"
        script.write_text(FAULTY.format(root=str(ROOT), command=command, fault=fault, where=where, number=number,
                                        rank=rank))
        return ranks.processes(num_ranks, *flags, script=script, common=(), hangs=rank if fault == HANG else None,
                               **environment)

    return run


def train(run_dir: Path, *flags: str) -> None:
    for end in ranks.processes(2, "--run_dir", str(run_dir), *flags, common=()):
        assert end.returncode == 0, end.stderr


@pytest.fixture(scope="module")
def whole(data_dir, run_dir, tmp_path_factory) -> Path:
    """A run of two processes without a fault; what they need, the training of `run_dir` has imported."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder, "--data_dir", str(data_dir), *FLAGS)
    return folder


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}

    def gather(name: str, value: object) -> None:
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif isinstance(value, dict | list | tuple):
            for key, part in value.items() if isinstance(value, dict) else enumerate(value):
                gather(f"{name}.{key}", part)

    gather("", torch.load(path, weights_only=True))
    return found


def figures_of(run_dir: Path) -> tuple[list, dict]:
    """Return what is measured, but time and memory."""
    with open(run_dir / "metrics.csv") as file:
        rows = [[row[name] for name in ("epoch", "train_loss", "train_rmse", "val_rmse", "val_mae", "lr")]
                for row in csv.DictReader(file)]
    metrics = json.loads((run_dir / "test_metrics.json").read_text())
    return rows, {name: {key: value for key, value in row.items() if not key.endswith("_s")}
                  if isinstance(row, dict) else row for name, row in metrics.items() if not name.endswith("_s")}


def assert_same(run_dir: Path, whole: Path) -> None:
    for name in ("last.pt", "best.pt"):
        one, other = tensors_of(whole / name), tensors_of(run_dir / name)
        assert one.keys() == other.keys() and len(one) > 20
        assert not [key for key in one if not torch.equal(one[key], other[key])], name
    assert figures_of(run_dir) == figures_of(whole)
    assert {path.name for path in run_dir.iterdir()} == {path.name for path in whole.iterdir()}


def do_as_told(said: str, run_dir: Path, flags: list[str]) -> None:
    """Give the command that a sentence names."""
    if said.endswith(f"; go on with: torchrun --nproc_per_node=2 main.py --run_dir {run_dir} --resume\n"):
        train(run_dir, "--resume", "--num_threads", "1")
    else:
        assert said.endswith("; no epoch was finished, nothing was written; the same command begins anew\n"), said
        assert not run_dir.exists()
        train(run_dir, *flags)


@pytest.mark.parametrize(("fault", "where", "number", "rank", "resumes"), [
    (KILL, "main.load_dataset", 1, 1, False),
    (KILL, "Engine.shared_gradients", 10, 1, True),
    (KILL, "Trainer._validate", 2, 1, True),
    (KILL_WRITING, "torch.save", 4, 0, True),
    (KILL, "main.build_trainer", 2, 1, True),
    (KILL_WRITING, "torch.save", 5, 0, True),
    (KILL, "report.test_results", 1, 1, True),
], ids=["reading", "step", "validation", "last.pt", "refit", "best.pt of the refit", "test"])
def test_a_rank_killed_at_any_stage_costs_no_more_than_an_epoch(run, data_dir, whole, tmp_path, fault, where, number,
                                                                rank, resumes):
    flags, run_dir = ["--data_dir", str(data_dir), *FLAGS], tmp_path / "run"
    ends = run("main", fault, where, number, rank, "--run_dir", str(run_dir), *flags)
    other = ends[1 - rank]
    assert (ends[rank].returncode, other.returncode) == (-signal.SIGKILL, 1)
    assert other.stderr.startswith(f"error: rank {1 - rank} stops because {ENDED}; ") and other.stderr.count("\n") == 1
    assert ("--resume" in other.stderr) is resumes
    do_as_told(other.stderr, run_dir, flags)
    assert_same(run_dir, whole)


def test_a_rank_killed_when_it_is_alone_is_resumed(run, data_dir, whole, tmp_path):
    """The others have gone: all that is left is to write the report."""
    ends = run("main", KILL, "report.plot_training", 1, 0, "--run_dir", str(tmp_path / "run"), "--data_dir",
               str(data_dir), *FLAGS)
    assert [end.returncode for end in ends] == [-signal.SIGKILL, 0]
    train(tmp_path / "run", "--resume", "--num_threads", "1")
    assert_same(tmp_path / "run", whole)


def test_a_rank_that_hangs_ends_the_run_in_time(run, data_dir, whole, tmp_path):
    run_dir = tmp_path / "run"
    ends = run("main", HANG, "Engine.shared_gradients", 10, 0, "--run_dir", str(run_dir), "--data_dir", str(data_dir),
               *FLAGS, RANK_TIMEOUT_S="2")
    assert [end.returncode for end in ends] == [1, 1]
    how = f"; go on with: torchrun --nproc_per_node=2 main.py --run_dir {run_dir} --resume\n"
    assert ends[1].stderr == f"error: rank 1 stops because {SILENT}{how}"
    assert ends[0].stderr == f"error: rank 0 stops because {ENDED}{how}"  # when it wakes
    do_as_told(how, run_dir, [])
    assert_same(run_dir, whole)


def test_ranks_that_do_not_find_each_other_end_with_a_sentence(run, data_dir, tmp_path):
    ends = run("main", KILL, "processes._meet", 1, 1, "--run_dir", str(tmp_path / "run"), "--data_dir", str(data_dir),
               RANK_TIMEOUT_S="1")
    assert [end.returncode for end in ends] == [1, -signal.SIGKILL]
    said = ends[0].stderr[ends[0].stderr.index("error: "):]
    assert said.startswith("error: rank 0 stops because the 2 processes of the run have not found each other within 1 ")
    assert said.endswith("nothing was written; the same command begins anew\n") and said.count("\n") == 1
    assert "Traceback" not in ends[0].stderr and not (tmp_path / "run").exists()


def test_a_full_disk_ends_all_ranks_and_the_run_goes_on(run, data_dir, whole, tmp_path):
    run_dir = tmp_path / "run"
    ends = run("main", FULL, "main.save_checkpoint", 3, 0, "--run_dir", str(run_dir), "--data_dir", str(data_dir),
               *FLAGS)
    assert [end.returncode for end in ends] == [1, 1]
    how = f"; go on with: torchrun --nproc_per_node=2 main.py --run_dir {run_dir} --resume\n"
    assert ends[0].stderr.startswith(f"error: {run_dir}") and ends[0].stderr.endswith(how)
    assert ends[0].stderr.count("\n") == 1
    assert ends[1].stderr == f"error: rank 1 stops because {ENDED}{how}"
    assert not list(run_dir.glob(".*"))  # nothing half-written is left
    do_as_told(how, run_dir, [])
    assert_same(run_dir, whole)


# --- everybody's lists and vectors -----------------------------------------------------------------------------


def bytes_of(output: Path) -> dict[str, bytes]:
    """Return the bytes of a file, or of all files of a folder."""
    files = sorted(output.iterdir()) if output.is_dir() else [output]
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def everybody(many_groups, run_dir, tmp_path_factory) -> Path:
    """Lists and vectors as one process writes them."""
    folder = tmp_path_factory.mktemp("everybody")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "GROUPS_PER_PART", 1)
        for flags in (("--all_users", "--out", str(folder / "lists.parquet")),
                      ("--export_vectors", str(folder / "vectors"))):
            assert rec.main(["--data_dir", str(many_groups), "--run_dir", str(run_dir), *flags]) == 0
    return folder


LISTS, VECTORS = ("lists.parquet", "--all_users", "--out"), ("vectors", "--export_vectors")


@pytest.mark.parametrize(("kind", "fault", "where", "number", "rank", "num_ranks", "then"), [
    (LISTS, KILL, "batch.lists_of", 3, 1, 3, 2), (VECTORS, KILL, "batch.vectors_of", 3, 0, 2, 3),
    (VECTORS, KILL, "batch._join_vectors", 1, 0, 2, 1), (VECTORS, KILL, "batch._description", 1, 0, 2, 1),
    (LISTS, HANG, "batch.lists_of", 3, 1, 2, 1), (VECTORS, FULL, "batch.vectors_of", 3, 1, 2, 2),
    (LISTS, FULL, "batch._join_lists", 1, 0, 2, 2)],
    ids=["lists, killed", "vectors, killed", "killed before joining", "killed joining", "lists, hanging",
         "vectors, a full disk", "lists, a full disk in the end"])
def test_lists_and_vectors_go_on_from_what_is_done_on_any_number_of_ranks(
        run, many_groups, run_dir, everybody, tmp_path, kind, fault, where, number, rank, num_ranks, then):
    (name, *flags), out = kind, tmp_path / kind[0]
    flags = ["--data_dir", str(many_groups), "--run_dir", str(run_dir), *flags, str(out)]
    ends = run("rec", fault, where, number, rank, *flags, num_ranks=num_ranks, RANK_TIMEOUT_S="2")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / f".{name}.parts").glob("*.parquet")}
    assert not out.exists() and 4 <= len(kept) <= 14
    assert ends[rank].returncode == (-signal.SIGKILL if fault is KILL else 1)
    for end in ends:
        assert "Traceback" not in end.stderr and not end.stdout
        if end.returncode == 1:
            assert end.stderr.startswith("error: ") and end.stderr.count("\n") == 1
            assert end.stderr.endswith("; the same command goes on from what is done\n")
            assert fault is not FULL or end is not ends[rank] or "cannot be written" in end.stderr
    assert sum(end.returncode == 1 for end in ends) == (1 if "_" in where[6:7] else num_ranks) - (fault is KILL)
    ends = run("rec", "pass", "rec.main", 0, 0, *flags, num_ranks=then)
    assert [end.returncode for end in ends] == [0] * then, ends[0].stderr
    assert bytes_of(out) == bytes_of(everybody / name)
    assert {path.name for path in tmp_path.iterdir()} == {"faulty.py", name}


# --- what is said ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("environment", "said"), [
    ({}, "python"), ({"WORLD_SIZE": "1"}, "python"), ({"WORLD_SIZE": "3"}, "torchrun --nproc_per_node=3"),
    ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}, "torchrun --nproc_per_node=4"),
    ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, "torchrun, with its flags as before,")])
def test_the_next_command_is_started_as_this_one_was(environment, said, monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes.launcher() == said


@pytest.mark.parametrize(("text", "seconds"), [(None, 1800), ("90.5", 90.5), ("0", None), ("soon", None),
                                               ("nan", None), ("1e9", None), ("", None)])
def test_the_time_limit_is_half_an_hour_or_what_the_environment_says(text, seconds, monkeypatch):
    monkeypatch.delenv("RANK_TIMEOUT_S", raising=False)
    if text is not None:
        monkeypatch.setenv("RANK_TIMEOUT_S", text)
    if seconds is None:
        with pytest.raises(DataError, match=rf"RANK_TIMEOUT_S is '{text}', and must be a number of seconds from 1 to"):
            processes._limit_s()
    else:
        assert processes._limit_s() == seconds


def test_a_run_is_replaced_when_an_epoch_of_the_new_one_is_done_and_never_mixed_with_it(data_dir, tmp_path, capsys,
                                                                                     monkeypatch):
    flags = ["--data_dir", str(data_dir), "--run_dir", str(tmp_path), *FLAGS, "--no-refit", "--epochs", "1"]
    assert main.main(flags) == 0
    before, save = {path.name: path.read_bytes() for path in tmp_path.iterdir()}, main.save_checkpoint

    def interrupted(path: Path, checkpoint: dict) -> None:
        if path.name == at:
            raise KeyboardInterrupt
        save(path, checkpoint)

    monkeypatch.setattr(main, "save_checkpoint", interrupted)
    capsys.readouterr()
    at = "best.pt"
    assert main.main([*flags, "--overwrite"]) == 130
    assert capsys.readouterr().err == ("\ninterrupted; no epoch was finished, the run before is kept; the same command "
                                       "begins anew\n")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    at = "last.pt"
    assert main.main([*flags, "--overwrite"]) == 130
    assert capsys.readouterr().err.endswith("; the same command begins anew\n")
    assert not (tmp_path / "last.pt").exists() and (tmp_path / "best.pt").read_bytes() != before["best.pt"]
    at = None
    assert main.main([*flags, "--overwrite"]) == 0
