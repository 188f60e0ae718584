import json

from benchmarks import rank_memory


def test_ranks_divide_what_they_hold_of_users(data_dir, tmp_path, capsys):
    assert rank_memory.main(["--data_dir", str(data_dir), "--ranks", "2", "--temp_dir", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    (row,) = json.loads(lines[-1])["rows"]
    assert row["ranks"] == len(row["of_each"]) == 2 and len(lines) == 3 and 0.5 < row["val_rmse"] < 1.5
    parts = row["of_each"]
    # Of all three splits, 14,000 ratings; in each a rank has one place more than users, where the last one's end.
    assert [sum(part[name] for part in parts) for name in ("users", "num_ratings", "rating_bytes")] == [
        400, 9922, 14_000 * 5 + 400 * 24 + 2 * 3 * 8]
    for part in parts:
        users = part["users"]  # 16 numbers and their two means each, and the number of steps
        assert users < 0.6 * 400 and part["num_ratings"] < 0.6 * 9922
        assert (part["row_bytes"], part["optimizer_bytes"]) == (users * 16 * 4, users * (2 * 16 + 1) * 4)
        assert 0 < part["start_bytes"] <= part["peak_bytes"] and 0 < part["private_bytes"] <= part["peak_bytes"]
    assert not [*tmp_path.iterdir()]


def test_made_up_data_has_the_users_that_are_asked_for(tmp_path):
    folder = rank_memory.make_dataset(tmp_path, 500, 40, 4000)
    assert json.loads((folder / "meta.json").read_text())["num_users"] == 500
