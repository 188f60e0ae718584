import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import rec
from models.ops.ranks import Ranks
from preprocessing import dataset
from preprocessing.dataset import DataError, RatingsFile, lock_beside, locked
from recommending import batch, parts, top_k
from recommending.recommender import Recommender

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def recommender(many_groups, run_dir) -> Recommender:
    return Recommender.load(run_dir, many_groups)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "GROUPS_PER_PART", 2)
    monkeypatch.setattr(batch, "USERS_PER_BLOCK", 13)
    monkeypatch.setattr(top_k, "MOVIES_PER_TILE", 32)


def hide_every_seventh(recommender: Recommender) -> None:
    """Take movies' training ratings away, so that no list may hold them."""
    num_ratings = recommender.movies.num_train_ratings.copy()
    num_ratings[::7] = 0
    recommender.movies = recommender.movies._replace(num_train_ratings=num_ratings)
    recommender.recommendable[::7] = False


def lists_in(path: Path) -> dict[int, list[tuple[int, int, float]]]:
    rows = pq.ParquetFile(path).read().to_pylist()
    lists: dict[int, list] = {}
    for row in rows:
        lists.setdefault(row["user_id"], []).append((row["rank"], row["movie_id"], row["stars"]))
    return lists


def test_every_user_gets_the_list_he_gets_alone(recommender, run_dir, small_parts, tmp_path):
    hide_every_seventh(recommender)
    out = tmp_path / "recs.parquet"
    counted = batch.recommend_all(recommender, out, 6, run_dir / "best.pt")
    lists = lists_in(out)
    assert counted == (len(lists), len(recommender.users.user_id) - len(lists))
    assert list(lists) == sorted(lists)
    for user_id in recommender.users.user_id.tolist():
        listed = lists.get(user_id, [])  # some have rated everything
        alone = recommender.recommend(recommender.history_of(user_id), 6)
        assert [(rank, movie_id) for rank, movie_id, _ in listed] == [(row.rank, row.movie_id) for row in alone]
        assert [stars for *_, stars in listed] == pytest.approx([row.stars for row in alone], abs=1e-5)
    assert list(tmp_path.iterdir()) == [out]


def test_each_rank_writes_its_share_of_what_is_missing_and_leaves_what_is_there(recommender, run_dir, small_parts,
                                                                               tmp_path, monkeypatch):
    folder, written = tmp_path / ".vectors.parts", []
    write(recommender, "vectors", tmp_path / "whole", run_dir)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(batch, "_join_vectors", Mock(side_effect=KeyboardInterrupt))
        write(recommender, "vectors", tmp_path / "vectors", run_dir)
    made = sorted(folder.glob("*.parquet"))
    for path in (made[0], *made[2:]):
        path.unlink()
    missing = parts.missing_parts(made, Ranks())
    assert missing == [made[0], *made[2:]] and len(made) == 7
    monkeypatch.setattr(parts, "missing_parts", lambda *_: missing)
    monkeypatch.setattr(Ranks, "wait", lambda _: None)
    seen = set(folder.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(batch, "_join_vectors", lambda *_: written.append("joined"))
        patch.setattr(parts.shutil, "rmtree", lambda *_: None)
        for rank in (2, 1, 0):
            batch.export_vectors(recommender, tmp_path / "vectors", run_dir / "best.pt", Ranks(rank, 3))
            written.append(set(folder.iterdir()) - seen)
            seen = set(folder.iterdir())
    assert written == [{made[3], made[6]}, {made[2], made[5]}, "joined", {made[0], made[4]}]
    monkeypatch.undo()
    monkeypatch.setattr(parts, "GROUPS_PER_PART", 2)
    write(recommender, "vectors", tmp_path / "vectors", run_dir)
    assert bytes_of(tmp_path / "vectors") == bytes_of(tmp_path / "whole")


def test_somebody_who_has_rated_nearly_everything_gets_a_short_list(recommender):
    ratings = recommender.ratings.read_group(0).subset(slice(0, int(recommender.users.offset[1])))
    everything = np.arange(3, len(recommender.movies.movie_id), dtype=np.int16)
    ones = np.ones(len(everything), np.uint8)
    found = batch.best_products_of(recommender, 10)
    recommender.users = recommender.users._replace(offset=np.array([0, len(everything)]))
    ratings = dataset.Ratings(np.zeros(len(everything), np.int32), everything, ones, everything, ones)
    table = batch.lists_of(recommender, ratings, found).to_pydict()
    assert table["rank"] == [1, 2, 3]
    assert sorted(table["movie_id"]) == recommender.movies.movie_id[:3].tolist()


KILLED = """
import os, signal, sys
import rec
from recommending import batch, parts
parts.GROUPS_PER_PART, batch.USERS_PER_BLOCK, calls, made = 2, 13, [], batch.{made}
def killed_at_the_eighth(*args):
    calls.append(1)
    if len(calls) == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return made(*args)
batch.{made} = killed_at_the_eighth
rec.main(sys.argv[1:])
"""
BOTH = pytest.mark.parametrize(("flags", "made"), [
    (("--all_users", "--out"), "lists_of"), (("--export_vectors",), "table_of_vectors")])


def bytes_of(output: Path) -> dict[str, bytes]:
    """Return the bytes of a file, or of all files of a folder."""
    files = sorted(output.iterdir()) if output.is_dir() else [output]
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in files}


@BOTH
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills by a signal that Windows lacks")
def test_a_killed_run_goes_on_after_its_last_part(flags, made, many_groups, run_dir, small_parts, tmp_path,
                                                 monkeypatch):
    flags = ["--data_dir", str(many_groups), "--run_dir", str(run_dir), *flags]
    assert rec.main([*flags, str(tmp_path / "whole")]) == 0
    out = tmp_path / "out"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", KILLED.format(made=made), *flags, str(out)], cwd=ROOT,
                            env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL and not out.exists()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / ".out.parts").glob("*.parquet")}
    assert 1 <= len(kept) <= 3
    calls, make, there, join = [], getattr(batch, made), {}, parts.shutil.rmtree
    monkeypatch.setattr(batch, made, lambda *args: calls.append(1) or make(*args))
    monkeypatch.setattr(parts.shutil, "rmtree", lambda folder, **flags: (
        there.update({path: path.stat().st_mtime_ns for path in kept}), join(folder, **flags)))
    assert rec.main([*flags, str(out)]) == 0
    assert len(calls) == len(RatingsFile(many_groups).group_starts) - 1 - 2 * len(kept)
    assert there == kept  # to the end
    assert bytes_of(out) == bytes_of(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "out"}


@BOTH
def test_an_interrupted_run_says_how_to_go_on(flags, made, capsys, many_groups, run_dir, small_parts, tmp_path,
                                             monkeypatch):
    make, calls = getattr(batch, made), []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return make(*args)

    monkeypatch.setattr(batch, made, interrupted)
    flags = ["--data_dir", str(many_groups), "--run_dir", str(run_dir), *flags, str(tmp_path / "out")]
    assert rec.main(flags) == 130
    assert capsys.readouterr().err.endswith("\ninterrupted; the same command goes on from what is done\n")
    assert len(list((tmp_path / ".out.parts").glob("*.parquet"))) == 3
    begun = len(calls)
    assert begun <= 8 + torch.get_num_threads()  # what others had in hand by then
    assert rec.main(flags) == 0
    assert (tmp_path / "out").exists() and len(calls) - begun == 14 - 2 * 3


def write(recommender: Recommender, kind: str, out: Path, run_dir: Path) -> None:
    if kind == "lists":
        batch.recommend_all(recommender, out, 6, run_dir / "best.pt")
    else:
        batch.export_vectors(recommender, out, run_dir / "best.pt")


@pytest.mark.parametrize("kind", ["lists", "vectors"])
@pytest.mark.parametrize(("changed", "to"), [
    ("data_set", "0" * 64), ("run", "0" * 64), ("kind", "others"), ("top_n", 7), ("groups_per_part", 3),
    ("standard_errors", 9.0), ("as_of_training", True)])
def test_parts_of_something_else_are_not_mixed_in(recommender, run_dir, tmp_path, monkeypatch, kind, changed, to):
    out, plan = tmp_path / "out", tmp_path / ".out.parts" / "plan.json"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(batch, f"_join_{kind}", Mock(side_effect=KeyboardInterrupt))  # when all parts are there
        write(recommender, kind, out, run_dir)
    begun = json.loads(plan.read_text())
    if changed not in begun:
        assert (kind, changed) == ("vectors", "top_n")
        return
    before = bytes_of(plan.parent)
    plan.write_text(json.dumps(begun | {changed: to}))
    with pytest.raises(DataError, match=f"begun with another {changed}; go on with the same, or remove"):
        write(recommender, kind, out, run_dir)
    plan.write_text("{")
    with pytest.raises(DataError, match="begun with another data_set"):
        write(recommender, kind, out, run_dir)
    plan.write_text(json.dumps(begun))
    assert not out.exists() and bytes_of(plan.parent) == before
    write(recommender, kind, out, run_dir)
    assert out.exists() and not plan.parent.exists()


@pytest.mark.parametrize("kind", ["lists", "vectors"])
def test_a_damaged_part_is_named_and_made_again_once_it_is_removed(recommender, run_dir, small_parts, tmp_path,
                                                                  monkeypatch, kind):
    """One bit of one number: the file could be read as it is."""
    write(recommender, kind, tmp_path / "whole", run_dir)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(batch, f"_join_{kind}", Mock(side_effect=KeyboardInterrupt))  # when all parts are there
        write(recommender, kind, tmp_path / "out", run_dir)
    part = sorted((tmp_path / ".out.parts").glob("*.parquet"))[1]
    row_group, data = pq.ParquetFile(part).metadata.row_group(0), bytearray(part.read_bytes())
    column = row_group.column(row_group.num_columns - 1)
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    part.write_bytes(data)
    for _ in range(2):  # of vectors, the first call has begun their files
        with pytest.raises(DataError, match=rf"{part} is damaged \(.*\); remove it and give the same command again"):
            write(recommender, kind, tmp_path / "out", run_dir)
    assert not (tmp_path / "out").exists()
    part.unlink()
    write(recommender, kind, tmp_path / "out", run_dir)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


def test_two_at_once_and_an_output_that_exists_are_refused(recommender, run_dir, tmp_path):
    out, partial = tmp_path / "recs.parquet", tmp_path / ".recs.parquet.parts"
    partial.mkdir()
    with (locked(lock_beside(out), "held"),
          pytest.raises(DataError, match=r"another run is writing .*recs\.parquet")):
        batch.recommend_all(recommender, out, 6, run_dir / "best.pt")
    out.write_text("mine")
    with pytest.raises(DataError, match=r"recs\.parquet exists already"):
        batch.recommend_all(recommender, out, 6, run_dir / "best.pt")
    with pytest.raises(DataError, match=r"recs\.parquet exists already"):
        batch.export_vectors(recommender, out, run_dir / "best.pt")
    assert out.read_text() == "mine"


def test_a_folder_that_is_not_there_gets_one_sentence(capsys, data_dir, run_dir, tmp_path):
    flags = ["--data_dir", str(data_dir), "--run_dir", str(run_dir)]
    for output in (["--all_users", "--out", str(tmp_path / "no" / "recs.parquet")],
                   ["--export_vectors", str(tmp_path / "no" / "vectors")]):
        assert rec.main([*flags, *output]) == 1
        error = capsys.readouterr().err
        assert "cannot be written" in error and error.count("\n") == 1


@pytest.mark.parametrize("flags", [["--all_users"], ["--out", "recs.parquet"]])
def test_all_users_and_out_go_together(flags):
    with pytest.raises(SystemExit) as exit_info:
        rec.main(flags)
    assert exit_info.value.code == 2


@pytest.fixture
def exported(recommender, run_dir, small_parts, tmp_path) -> dict[str, np.ndarray]:
    hide_every_seventh(recommender)
    batch.export_vectors(recommender, tmp_path / "vectors", run_dir / "best.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["vectors"]
    return {name: np.load(tmp_path / "vectors" / f"{name}.npy", allow_pickle=False)
            for name in ("user_ids", "user_vectors", "movie_ids", "movie_vectors")}


def unseen(recommender: Recommender, user_id: int, movie_ids: np.ndarray) -> list[int]:
    seen = recommender.movies.movie_id[recommender.history_of(user_id).movie_idx.numpy()]
    return movie_ids[~np.isin(movie_ids, seen)].tolist()


def test_inner_products_of_exported_vectors_are_the_scores(recommender, exported):
    assert all(exported[name].dtype == np.float32 for name in ("user_vectors", "movie_vectors"))
    assert exported["movie_ids"].tolist() == recommender.movies.movie_id[recommender.recommendable.numpy()].tolist()
    for place in range(0, len(exported["user_ids"]), 29):
        user_id = int(exported["user_ids"][place])
        scores = exported["movie_vectors"] @ exported["user_vectors"][place]
        ours = recommender.recommend(recommender.history_of(user_id), 8)
        order = exported["movie_ids"][np.argsort(-scores, kind="stable")]
        assert unseen(recommender, user_id, order)[:8] == [row.movie_id for row in ours]
        of_ours = [scores[exported["movie_ids"] == row.movie_id][0] for row in ours]
        stars = recommender.model.stars(torch.tensor(of_ours))
        assert stars.tolist() == pytest.approx([row.stars_bound for row in ours], abs=1e-5)


def test_faiss_finds_the_same_list_in_the_exported_vectors(recommender, exported):
    faiss = pytest.importorskip("faiss")
    index = faiss.IndexFlatIP(exported["movie_vectors"].shape[1])
    index.add(exported["movie_vectors"])
    _, places = index.search(exported["user_vectors"][:20], len(exported["movie_ids"]))
    for user_id, found in zip(exported["user_ids"][:20].tolist(), places, strict=True):
        ours = recommender.recommend(recommender.history_of(user_id), 8)
        assert unseen(recommender, user_id, exported["movie_ids"][found])[:8] == [row.movie_id for row in ours]
