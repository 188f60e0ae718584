import json

import pytest

from benchmarks import rank_memory


def test_ranks_divide_what_they_hold_of_users(data_dir, tmp_path, capsys):
    assert rank_memory.main(["--data_dir", str(data_dir), "--ranks", "1,2", "--temp_dir", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    one, two = json.loads(lines[-1])["rows"]
    assert (one["ranks"], two["ranks"]) == (1, 2) and len(lines) == 4
    assert two["val_rmse"] == pytest.approx(one["val_rmse"], abs=1e-3)
    (whole,), parts = one["of_each"], two["of_each"]
    assert whole["users"] == 400 and len(parts) == 2
    for name in ("users", "num_ratings", "row_bytes", "optimizer_bytes"):
        assert sum(part[name] for part in parts) == whole[name]
        assert max(part[name] for part in parts) < 0.6 * whole[name]
    for part in (whole, *parts):
        users = part["users"]  # 16 numbers and their two means each, and the number of steps
        assert (part["row_bytes"], part["optimizer_bytes"]) == (users * 16 * 4, users * (2 * 16 + 1) * 4)
        assert 0 < part["start_bytes"] <= part["peak_bytes"] and 0 < part["private_bytes"] <= part["peak_bytes"]
    ends = 3 * 8  # in each split a rank has one place more than users, where the ratings of its last one end
    assert whole["rating_bytes"] == 14_000 * 5 + 400 * 24 + ends
    assert sum(part["rating_bytes"] for part in parts) == whole["rating_bytes"] + ends
    assert not [*tmp_path.iterdir()]


def test_made_up_data_has_the_users_that_are_asked_for(tmp_path):
    folder = rank_memory.make_dataset(tmp_path, 500, 40, 4000)
    assert json.loads((folder / "meta.json").read_text())["num_users"] == 500
