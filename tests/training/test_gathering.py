"""Checkpoints of many ranks, each of which has the rows of its own users alone."""

import errno
import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch

import main
from tests.ranks import FLAGS, ROOT, assert_same_run, load, processes

BOTH = ["--blend", "both", "--lr", "0.0003", "--batch_size", "64"]

# What every script begins with.
IMPORTS = f"""
import json, os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
import main
from models.ops import ranks as processes
from training import gathering
from training.engine import Engine
"""

# Reads last.pt as a resumed run does, and writes it to another folder as a run does, in blocks of 7 rows.
COPY = IMPORTS + """
import torch
from models.checkpoint import load_checkpoint, save_checkpoint
from training.batches import load_dataset
from training.build import build_trainer

*flags, target = sys.argv[1:]
args, processes.BLOCK_ROWS = main.parse_args(flags), 7
with processes.joined() as ranks:
    data = load_dataset(args.data_dir, ranks)
    trainer = build_trainer(args, data, torch.device("cpu"), ranks)
    main.resume(args, trainer, data.meta["fingerprint"])
    held = [{"users": engine.ratings.owned, "ratings": len(engine.ratings), "rows": len(engine.model.user_embedding),
             "state": [len(table) for table in engine.user_rows.state.values()]} for engine in trainer.engines]
    before = [engine.model.user_embedding for engine in trainer.engines]
    with gathering.rows_of_all(trainer, Path(target)):
        if ranks.is_main:
            before_it = load_checkpoint(args.run_dir / "last.pt", None)
            save_checkpoint(Path(target, "last.pt"), before_it | trainer.checkpoint(data.meta["fingerprint"])
                            | trainer.state_dict())
    for engine, table in zip(trainer.engines, before, strict=True):
        assert engine.model.user_embedding is engine.user_rows.table is table
        assert {len(state) for state in engine.user_rows.state.values()} == {len(table)}
    Path(target, f"held{ranks.rank}.json").write_text(json.dumps(held))
processes.leave(0)
"""

# main.py, but all processes are interrupted when an epoch begins.
INTERRUPTED = IMPORTS + """
run_epoch = Engine.run_epoch

def interrupted(engine, epoch, *others):
    if epoch == 2:
        raise KeyboardInterrupt
    return run_epoch(engine, epoch, *others)

Engine.run_epoch = interrupted
processes.leave(main.main())
"""

# main.py, but in the second epoch something happens to a rank before it sends, or the main one writes, some rows.
STOPPED = IMPORTS + """
rows_of_all, calls = processes.Ranks.rows_of_all, 0

def stopped(ranks, table):
    global calls
    calls += 1
    for block in rows_of_all(ranks, table) if calls != 6 or ranks.rank != {rank} else something():
        yield block

def something():
    {happens}
    yield

processes.Ranks.rows_of_all = stopped
processes.leave(main.main())
"""


def script(folder: Path, text: str) -> Path:
    path = folder / "script.py"
    path.write_text(text)
    return path


def assert_equal(one: object, other: object, name: str = "") -> None:
    """Assert that two checkpoints are the same bit for bit, but for times and memory."""
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), name
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one.keys() - {"train_s", "seconds", "ratings_per_s", "peak_rss_mib", "flags"}:
            assert_equal(one[key], other[key], f"{name} {key}")
    elif isinstance(one, list | tuple):
        for number, (mine, same) in enumerate(zip(one, other, strict=True)):
            assert_equal(mine, same, f"{name} {number}")
    else:
        assert one == other, name


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory) -> Path:
    """The folder of a run of one process that nobody cut, with both kinds of towers."""
    folder = tmp_path_factory.mktemp("whole")
    assert main.main([*FLAGS, *BOTH, "--data_dir", str(data_dir), "--run_dir", str(folder), "--refit"]) == 0
    return folder


@pytest.mark.parametrize("ranks", [2, 5])
def test_the_rows_of_a_checkpoint_go_through_any_number_of_ranks_bit_for_bit(ranks, data_dir, whole, tmp_path):
    ends = processes(ranks, *BOTH, "--data_dir", str(data_dir), "--run_dir", str(whole), str(tmp_path),
                     script=script(tmp_path, COPY))
    assert [end.returncode for end in ends] == [0] * ranks, ends[0].stderr
    assert_equal(load(whole), load(tmp_path))
    assert len([*tmp_path.iterdir()]) == ranks + 2  # and no file of rows
    held = [json.loads((tmp_path / f"held{rank}.json").read_text()) for rank in range(ranks)]
    for of_towers, number in zip(zip(*held, strict=True), (400, 91), strict=True):
        ends = [0, *(one["users"][1] for one in of_towers)]
        assert [one["users"] for one in of_towers] == [list(pair) for pair in itertools.pairwise(ends)]
        assert ends[-1] == number
        for one, (first, last) in zip(of_towers, itertools.pairwise(ends), strict=True):
            assert {one["rows"], *one["state"]} == {last - first}  # nobody else's
        assert max(one["ratings"] for one in of_towers) < 1.5 * sum(one["ratings"] for one in of_towers) / ranks


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3), (2, 2)])
def test_a_run_of_some_ranks_goes_on_with_others(before, after, data_dir, whole, tmp_path):
    flags = [*BOTH, "--data_dir", str(data_dir), "--run_dir", str(tmp_path / "cut"), "--refit"]
    ends = processes(before, *flags, script=script(tmp_path, INTERRUPTED))
    assert [end.returncode for end in ends] == [130] * before, ends[0].stderr
    assert load(tmp_path / "cut")["epoch"] == 1
    ends = processes(after, "--run_dir", str(tmp_path / "cut"), "--resume", "--num_threads", "1", common=())
    assert [end.returncode for end in ends] == [0] * after, ends[0].stderr
    assert_same_run(load(whole), load(tmp_path / "cut"))
    one, other = (torch.load(folder / "best.pt", weights_only=True) for folder in (whole, tmp_path / "cut"))
    assert one["refit"] is other["refit"] is True and one["epoch"] == other["epoch"]
    for name, tensor in one["model"].items():
        torch.testing.assert_close(tensor, other["model"][name], rtol=1e-3, atol=1e-3, msg=name)
    if before == after:  # and so all sums are added up in the same order
        assert [end.returncode for end in processes(after, *flags, "--run_dir", str(tmp_path / "same"))] == [0] * after
        for name in ("last.pt", "best.pt"):
            assert_equal(*(torch.load(tmp_path / folder / name, weights_only=True) for folder in ("cut", "same")))


@pytest.mark.parametrize(("rank", "happens", "codes", "said"), [
    (0, f"raise OSError({errno.ENOSPC}, 'no space')", [1, 1], "{run_dir}: the disk is full; go on with: torchrun"),
    (1, "os.kill(os.getpid(), signal.SIGKILL)", [1, -9], "error: rank 0 stops because another process of the run"),
])
def test_where_the_rows_do_not_come_together_the_checkpoint_before_is_kept(rank, happens, codes, said, data_dir,
                                                                          tmp_path):
    run_dir = tmp_path / "run"
    flags = ["--data_dir", str(data_dir), "--run_dir", str(run_dir), "--batch_size", "64"]
    ends = processes(2, *flags, script=script(tmp_path, STOPPED.format(rank=rank, happens=happens)))
    assert [end.returncode for end in ends] == codes and said.format(run_dir=run_dir) in ends[0].stderr
    assert "Traceback" not in ends[0].stderr + ends[1].stderr
    assert load(run_dir)["epoch"] == 1
    assert {path.name for path in run_dir.iterdir()} == {"best.pt", "last.pt", "metrics.csv"}
    shutil.copytree(run_dir, tmp_path / "copy")
    assert main.main(["--run_dir", str(tmp_path / "copy"), "--resume", "--num_threads", "1"]) == 0
