import io
import itertools
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import distributed as dist

import main
from models.checkpoint import load_model
from models.ops.ranks import Ranks, leave
from preprocessing import netflix_preprocess, synthetic_netflix
from preprocessing.dataset import read_meta
from tests.ranks import FLAGS, LIMIT_S, ROOT, assert_same_run, load, processes, torchrun
from training import relevance
from training.batches import load_dataset
from training.evaluation import predict_errors, scorer
from training.metrics import evaluate_ranking
from training.relevance import fit_weights

# main.py, but for one rank, which is killed before it shares the gradients of a step.
KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
import main
from models.ops import ranks as processes
from training.engine import Engine
left, shared = {step}, Engine.shared_gradients

def shared_gradients(engine, with_relevance):
    global left
    left -= 1
    if left == 0 and os.environ["RANK"] == "{rank}":
        os.kill(os.getpid(), signal.SIGKILL)
    return shared(engine, with_relevance)

Engine.shared_gradients = shared_gradients
processes.leave(main.main())
"""


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory) -> dict:
    """A run of one process that nobody cut, in 7 steps an epoch."""
    folder = tmp_path_factory.mktemp("whole")
    assert main.main([*FLAGS, "--data_dir", str(data_dir), "--run_dir", str(folder), "--batch_size", "64"]) == 0
    return load(folder)


@pytest.mark.parametrize(("sides", "more"), [
    ("user", []), ("both", ["--lr", "0.0003"]), ("both", ["--refit", "--lr", "0.0003"])])
def test_two_ranks_equal_one(sides, more, data_dir, tmp_path):
    flags = ["--data_dir", str(data_dir), "--blend", sides, *more]
    assert main.main([*FLAGS, *flags, "--run_dir", str(tmp_path / "one")]) == 0
    speaker, other = processes(2, *flags, "--run_dir", str(tmp_path / "two"))
    assert speaker.returncode == other.returncode == 0, speaker.stderr + other.stderr
    assert_same_run(load(tmp_path / "one"), load(tmp_path / "two"))
    assert speaker.stdout.count("epoch   1") == 1 and not other.stdout  # one process speaks for all
    assert {path.name for path in (tmp_path / "two").iterdir()} == {
        "best.pt", "last.pt", "metrics.csv", "training.png", "test_metrics.json"}
    one, two = (flat(json.loads((tmp_path / name / "test_metrics.json").read_text())) for name in ("one", "two"))
    assert two == pytest.approx(one, rel=2e-3) and one["bias rmse"] == pytest.approx(two["bias rmse"], rel=1e-9)
    assert speaker.stdout.count("\nrefit ") == 2 * ("--refit" in more)  # both for as many epochs as were best
    one, two = (torch.load(tmp_path / name / "best.pt", weights_only=True) for name in ("one", "two"))
    assert one["refit"] is two["refit"] is ("--refit" in more) and one["epoch"] == two["epoch"]
    for name, tensor in one["model"].items():
        torch.testing.assert_close(tensor, two["model"][name], rtol=1e-3, atol=1e-3, msg=name)


def test_ranks_with_threads_meet_in_one_order(data_dir, tmp_path):
    """Both kinds of towers are trained side by side by the threads of one process, and one after the other by many."""
    flags = ["--data_dir", str(data_dir), "--blend", "both", "--lr", "0.0003"]
    assert main.main([*FLAGS, *flags, "--run_dir", str(tmp_path / "one")]) == 0
    (end,) = torchrun(2, *flags, "--num_threads", "2", "--run_dir", str(tmp_path / "two"))  # threads outlive no fork
    assert end.returncode == 0, end.stderr
    assert_same_run(load(tmp_path / "one"), load(tmp_path / "two"))


def flat(metrics: dict) -> dict[str, float]:
    """Return the measures of test_metrics.json by row and column, but the seconds."""
    return {f"{name} {column}": value for name, row in metrics.items() if isinstance(row, dict)
            for column, value in row.items() if value is not None}


@pytest.mark.parametrize("ranks", [2, 3])
def test_any_number_of_ranks_measures_a_model_alike(ranks, data_dir, run_dir, tmp_path):
    """Each measures its users; some have none here, for users are dealt by their ratings."""
    for name in ("one", "many"):
        shutil.copytree(run_dir, tmp_path / name)
    assert main.main(["--eval_only", "--run_dir", str(tmp_path / "one")]) == 0
    ends = processes(ranks, "--eval_only", "--run_dir", str(tmp_path / "many"), common=())
    assert [end.returncode for end in ends] == [0] * ranks, ends[0].stderr
    one, many = (flat(json.loads((tmp_path / name / "test_metrics.json").read_text())) for name in ("one", "many"))
    assert many == pytest.approx(one, rel=1e-6)


def test_ranks_write_the_lists_and_vectors_of_everybody_as_one_does(run_dir, data_dir, tmp_path):
    for flags in (["--all_users", "--out", "lists.parquet"], ["--export_vectors", "vectors"]):
        for folder, ranks in ((tmp_path / "one", 1), (tmp_path / "many", 3)):
            folder.mkdir(exist_ok=True)
            own = [*flags[:-1], str(folder / flags[-1]), "--run_dir", str(run_dir)]
            ends = processes(ranks, *own, script=ROOT / "rec.py", common=())
            assert [end.returncode for end in ends] == [0] * ranks, ends[0].stderr
            assert ends[0].stdout.startswith("wrote the") and not any(end.stdout for end in ends[1:])
    written = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()}
    assert len(written) == 7
    for path in written:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "many" / path).read_bytes(), path


def test_what_ranks_do_not_share_out_ends_with_a_sentence(run_dir):
    end, other = processes(2, "--run_dir", str(run_dir), script=ROOT / "rec.py", common=())
    assert end.returncode == other.returncode == 2 and "torchrun shares out --all_users" in end.stderr


def test_more_ranks_than_users_equal_one(tmp_path):
    raw, data = tmp_path / "raw", tmp_path / "data"
    synthetic_netflix.generate(raw, num_users=2, num_movies=30, num_ratings=40, seed=0)
    assert netflix_preprocess.main(["--raw_dir", str(raw), "--out_dir", str(data)]) == 0
    assert main.main(["--data_dir", str(data), "--run_dir", str(tmp_path / "one"), *FLAGS]) == 0
    for result in processes(3, "--data_dir", str(data), "--run_dir", str(tmp_path / "three")):
        assert result.returncode == 0, result.stderr
    assert_same_run(load(tmp_path / "one"), load(tmp_path / "three"))


def test_a_run_of_two_resumes_as_one(data_dir, whole, tmp_path):
    flags = ["--data_dir", str(data_dir), "--run_dir", str(tmp_path), "--batch_size", "64"]
    for result in processes(2, *flags):
        assert result.returncode == 0, result.stderr
    assert main.main([*flags, *FLAGS, "--resume"]) == 0
    assert_same_run(whole, load(tmp_path))


@pytest.mark.parametrize(("start", "rank"), [(torchrun, 1), (processes, 0)])
def test_when_a_rank_is_killed_the_other_ends_with_one_sentence_and_the_run_goes_on(start, rank, data_dir, whole,
                                                                                    tmp_path):
    flags = ["--data_dir", str(data_dir), "--batch_size", "64", "--run_dir", str(tmp_path / "cut")]
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(root=str(ROOT), step=10, rank=rank))
    results = start(2, *flags, script=script)
    said = "".join(result.stderr for result in results)
    how = f"; go on with: torchrun --nproc_per_node=2 main.py --run_dir {tmp_path / 'cut'} --resume\n"
    found = said.count(f"error: rank {1 - rank} stops because another process of the run has ended{how}")
    if start is torchrun:  # which may have noticed first and asked it to end
        assert results[0].returncode != 0 and found + said.count(f"\ninterrupted{how}") == 1
    else:
        assert found == 1 and (results[rank].returncode, results[1 - rank].returncode) == (-signal.SIGKILL, 1)
    assert "main.py\", line" not in said  # no traceback of ours; torchrun prints one of its own
    assert load(tmp_path / "cut")["epoch"] == 1
    assert main.main([*flags, *FLAGS, "--resume"]) == 0
    assert_same_run(whole, load(tmp_path / "cut"))


def in_threads(size: int, work: Callable[[Ranks], object], monkeypatch: pytest.MonkeyPatch) -> list:
    """Return what the ranks of a run make of some work, each rank a thread of this process."""
    sent, barrier = [()] * size, threading.Barrier(size, timeout=LIMIT_S)

    def sum_(ranks: Ranks, *tensors: torch.Tensor) -> None:
        sent[ranks.rank] = [tensor.clone() for tensor in tensors]
        barrier.wait()
        totals = [sum(parts) for parts in zip(*sent, strict=True)]
        barrier.wait()
        for tensor, total in zip(tensors, totals, strict=True):
            tensor.copy_(total)

    monkeypatch.setattr(Ranks, "sum_", sum_)
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, [Ranks(rank, size) for rank in range(size)]))


@pytest.mark.parametrize("cells", [2**21, 91 * 40])  # of all 400 users, and of about 40
def test_each_of_two_ranks_measures_and_fits_to_validation_what_one_does(cells, data_dir, run_dir, monkeypatch):
    monkeypatch.setattr(relevance, "STACKING_CELLS", cells)

    def measure(ranks: Ranks) -> tuple[list[float], list[float]]:
        data = load_dataset(data_dir, ranks)
        model, _ = load_model(run_dir / "best.pt", data.meta["fingerprint"])
        model.user_based.keep_users(*data.train.owned)
        fit_weights(model, data.train, data.validation, data.train.users(), 1, data.last_day, ranks)
        errors = predict_errors(model, data.train, data.validation, 1, ranks)
        return [errors.count, errors.rmse, errors.mae], model.relevance.weights.flatten().tolist()

    (errors, weights), *others = measure(Ranks()), *in_threads(2, measure, monkeypatch)
    assert errors[0] == read_meta(data_dir)["split"]["num_validation"]
    for other_errors, other_weights in others:
        assert other_errors == pytest.approx(errors, rel=1e-6) and other_weights == pytest.approx(weights, rel=1e-5)


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_measure_the_same_sample_of_the_users_as_one(size, data_dir, run_dir, monkeypatch):
    def measure(ranks: Ranks) -> dict[str, float]:
        data = load_dataset(data_dir, ranks)
        model, _ = load_model(run_dir / "best.pt", data.meta["fingerprint"])
        model.user_based.keep_users(*data.train.owned)
        return evaluate_ranking(scorer(model, data.train, 1, data.last_day), [data.train, data.validation], data.test,
                                torch.ones(data.num_movies, dtype=torch.bool), max_users=50, ranks=ranks)

    one, *others = measure(Ranks()), *in_threads(size, measure, monkeypatch)
    assert 0 < one["ndcg@10"] < 1
    for other in others:
        assert other == pytest.approx(one, rel=1e-9)


@pytest.mark.parametrize("code", [0, 1, 130])
def test_a_process_ends_with_the_code_of_its_command_and_one_of_many_at_once(code, monkeypatch):
    with pytest.raises(SystemExit) as end:
        leave(code)
    assert end.value.code == code
    written = [io.BytesIO(), io.BytesIO()]
    for name, file in zip(("stdout", "stderr"), written, strict=True):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(file))
        getattr(sys, name).write(name)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(os, "_exit", Mock(side_effect=InterruptedError))
    with pytest.raises(InterruptedError):
        leave(code)
    os._exit.assert_called_once_with(code)
    assert [file.getvalue() for file in written] == [b"stdout", b"stderr"]  # which such an end would lose


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_users_are_dealt_without_gap_or_overlap_and_by_their_ratings(size):
    offset = np.concatenate([[0], np.cumsum(np.random.default_rng(0).integers(1, 50, 200))])
    ranges = [Ranks(rank, size).user_range(offset) for rank in range(size)]
    assert ranges[0][0] == 0 and ranges[-1][1] == 200
    assert all(left[1] == right[0] for left, right in itertools.pairwise(ranges))
    shares = [offset[last] - offset[first] for first, last in ranges]
    assert max(shares) - min(shares) <= 2 * 50
