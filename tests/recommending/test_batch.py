import json
import os
import shutil
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
from preprocessing.dataset import DataError, RatingsFile, lock_beside, locked, writer
from recommending import batch, top_k
from recommending.recommender import Recommender

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def many_groups(data_dir, tmp_path_factory) -> Path:
    """The data set with a row group for every 30 users, so that there is something to interrupt."""
    folder = tmp_path_factory.mktemp("groups") / "processed"
    shutil.copytree(data_dir, folder)
    users, file = dataset.read_users(data_dir), RatingsFile(data_dir)
    borders = [*users.offset[:-1:30].tolist(), int(users.offset[-1])]
    with writer.ratings_writer(folder, file.schema) as parquet:
        for start, stop in zip(borders[:-1], borders[1:], strict=True):  # noqa: RUF007
            writer.write_ratings(parquet, next(file.read_rows(slice(start, stop))))
    writer.write_meta(folder, dataset.read_meta(data_dir))
    return folder


@pytest.fixture
def recommender(many_groups, run_dir) -> Recommender:
    return Recommender.load(run_dir, many_groups)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(batch, "GROUPS_PER_PART", 2)
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


def test_ranks_write_each_part_once_and_leave_what_is_there(recommender, run_dir, small_parts, tmp_path):
    whole, folder = tmp_path / "whole.parquet", tmp_path / "parts"
    batch.recommend_all(recommender, whole, 5, run_dir / "best.pt")
    folder.mkdir()
    written = []
    for rank in (1, 0, 2):
        before = {path.name for path in folder.iterdir()}
        parts = batch._write_parts(recommender, folder, 5, Ranks(rank, 3))
        written.append({path.name for path in folder.iterdir()} - before)
    assert sorted(map(len, written), reverse=True) == [3, 2, 2] and sum(map(len, written)) == len(parts)
    kept = {path: path.stat().st_mtime_ns for path in parts[1:]}
    parts[0].unlink()
    batch._write_parts(recommender, folder, 5, Ranks(0, 3))
    assert kept == {path: path.stat().st_mtime_ns for path in parts[1:]}
    batch._join(parts, tmp_path / "joined.parquet")
    assert (tmp_path / "joined.parquet").read_bytes() == whole.read_bytes()


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
from recommending import batch
batch.GROUPS_PER_PART, batch.USERS_PER_BLOCK, calls, lists_of = 2, 13, [], batch.lists_of
def killed_at_the_eighth(*args):
    calls.append(1)
    if len(calls) == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return lists_of(*args)
batch.lists_of = killed_at_the_eighth
rec.main(sys.argv[1:])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills by a signal that Windows lacks")
def test_a_killed_run_goes_on_after_its_last_part(capsys, many_groups, run_dir, small_parts, tmp_path, monkeypatch):
    flags = ["--data_dir", str(many_groups), "--run_dir", str(run_dir), "--all_users", "--out"]
    assert rec.main([*flags, str(tmp_path / "whole.parquet")]) == 0
    out = tmp_path / "recs.parquet"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", KILLED, *flags, str(out)], cwd=ROOT, env=environment,
                            capture_output=True)
    assert killed.returncode == -signal.SIGKILL and not out.exists()
    kept = sorted((tmp_path / ".recs.parquet.parts").glob("*.parquet"))
    assert 1 <= len(kept) <= 3
    made, lists_of = [], batch.lists_of
    monkeypatch.setattr(batch, "lists_of", lambda *args: made.append(1) or lists_of(*args))
    assert rec.main([*flags, str(out)]) == 0
    assert len(made) == len(RatingsFile(many_groups).group_starts) - 1 - 2 * len(kept)
    assert lists_in(out) == lists_in(tmp_path / "whole.parquet")
    assert not (tmp_path / ".recs.parquet.parts").exists()


def test_an_interrupted_run_says_how_to_go_on(capsys, many_groups, run_dir, small_parts, tmp_path, monkeypatch):
    lists_of, made = batch.lists_of, []

    def interrupted(*args):
        made.append(1)
        if len(made) == 8:
            raise KeyboardInterrupt
        return lists_of(*args)

    monkeypatch.setattr(batch, "lists_of", interrupted)
    flags = ["--data_dir", str(many_groups), "--run_dir", str(run_dir), "--all_users", "--out",
             str(tmp_path / "recs.parquet")]
    assert rec.main(flags) == 130
    assert "3 of 7 parts are kept; the same command goes on" in capsys.readouterr().err
    assert rec.main(flags) == 0
    assert (tmp_path / "recs.parquet").exists()


def test_parts_of_something_else_are_not_mixed_in(recommender, run_dir, tmp_path):
    out, partial = tmp_path / "recs.parquet", tmp_path / ".recs.parquet.parts"
    partial.mkdir()
    plan = {"data_set": recommender.meta["fingerprint"], "run": "0" * 64, "top_n": 6, "groups_per_part": 16}
    (partial / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(DataError, match="begun with another run; go on with the same, or remove"):
        batch.recommend_all(recommender, out, 6, run_dir / "best.pt")
    (partial / "plan.json").write_text("{")
    with pytest.raises(DataError, match="begun with another data_set"):
        batch.recommend_all(recommender, out, 6, run_dir / "best.pt")


def test_a_damaged_part_is_named_and_made_again_once_it_is_removed(recommender, run_dir, small_parts, tmp_path,
                                                                  monkeypatch):
    """One bit of one number of stars: the file could be read as it is."""
    batch.recommend_all(recommender, tmp_path / "whole", 6, run_dir / "best.pt")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(batch, "_join", Mock(side_effect=KeyboardInterrupt))  # when all parts are there
        batch.recommend_all(recommender, tmp_path / "recs", 6, run_dir / "best.pt")
    part = sorted((tmp_path / ".recs.parts").glob("*.parquet"))[1]
    stars, data = pq.ParquetFile(part).metadata.row_group(0).column(3), bytearray(part.read_bytes())
    data[stars.data_page_offset + stars.total_compressed_size // 2] ^= 1
    part.write_bytes(data)
    with pytest.raises(DataError, match=rf"{part} is damaged \(.*\); remove it and give the same command again"):
        batch.recommend_all(recommender, tmp_path / "recs", 6, run_dir / "best.pt")
    assert not (tmp_path / "recs").exists()
    part.unlink()
    batch.recommend_all(recommender, tmp_path / "recs", 6, run_dir / "best.pt")
    assert lists_in(tmp_path / "recs") == lists_in(tmp_path / "whole")


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
        batch.export_vectors(recommender, out)
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
def exported(recommender, small_parts, tmp_path) -> dict[str, np.ndarray]:
    hide_every_seventh(recommender)
    batch.export_vectors(recommender, tmp_path / "vectors")
    assert not (tmp_path / ".vectors.partial").exists()
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
