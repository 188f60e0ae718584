import json

from benchmarks import bench_serve


def test_the_last_line_has_the_promised_figures(capfd, data_dir, monkeypatch):
    monkeypatch.setattr(bench_serve, "time_screen", lambda address: None)
    monkeypatch.setattr(bench_serve, "CLIENTS", (1, 4))
    questions = bench_serve.questions
    monkeypatch.setattr(bench_serve, "questions", lambda folder: tuple(bodies[:20] for bodies in questions(folder)))
    assert bench_serve.main(["--data_dir", str(data_dir), "--requests", "40", "--memory_requests", "100"]) == 0
    result = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert [(row["who"], row["clients"]) for row in result["rows"]] == [
        (who, clients) for who in ("new", "user", "new, no reasons", "plain") for clients in (1, 4)]
    assert all(row[name] > 0 for row in result["rows"] for name in ("per_s", "cpu_ms", "p50_ms", "p99_ms"))
    assert all(row["model_share"] > 0 for row in result["rows"] if row["who"] != "plain")
    assert len(result["rss_mib"]) == 10 and result["screen_ms"] is None and result["users"] == 400


def test_a_plain_forward_pass_gives_the_same_list(data_dir, tmp_path):
    run_dir = bench_serve.make_run(tmp_path / "run", data_dir)
    ours, plain = (kind.load(run_dir, data_dir) for kind in (bench_serve.Recommender, bench_serve.PlainRecommender))
    for ratings in ({1: 5, 2: 3, 40: 1}, {7: 2}):
        rows, others = (one.recommend(one.history_from(ratings)) for one in (ours, plain))
        assert [row.movie_id for row in rows] == [row.movie_id for row in others]
        assert max(abs(row.stars - other.stars) for row, other in zip(rows, others, strict=True)) < 1e-4
