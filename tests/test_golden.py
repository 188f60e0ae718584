"""Runs whose figures are known: a term, a rate or a seed that changes does not pass unseen.

Every run is three epochs on a tiny synthetic data set, on one thread; golden.json has what it wrote. Where a change of
the figures is meant, `make golden` writes them anew, and the commit that does says why.
"""

import csv
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import main
import rec
from models.config import PARTS
from preprocessing import netflix_preprocess, synthetic_netflix

GOLDEN = Path(__file__).with_name("golden.json")
TOLERANCE = 1e-5  # relative, and of numbers below 1 absolute; sums in another order change less
RUNS = {
    "default": [],
    **{f"without {part}": ["--without", part] for part in PARTS},
    "item-based towers too": ["--blend", "both"],
    "no relevance, no refit": ["--relevance_weight", "0", "--no-refit"],
    "dropout, one member": ["--dropout", "0.3", "--ensemble_size", "1"],
    "l2, learning rate": ["--time_l2", "20", "--movie_l2", "30", "--l2", "0.1", "--embedding_l2", "20", "--lr",
                          "0.003", "--relevance_weight", "0.5"],
    "another seed, small steps": ["--seed", "3", "--batch_size", "7"],
}


def generate(folder: Path) -> None:
    """Make the raw data of all runs."""
    synthetic_netflix.generate(folder, num_users=50, num_movies=40, num_ratings=1_400, seed=7)


@pytest.fixture(scope="module")
def golden_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    generate(folder / "raw")
    assert netflix_preprocess.main(["--raw_dir", str(folder / "raw"), "--out_dir", str(folder / "data")]) == 0
    return folder


def figures_of(name: str, folder: Path, run_dir: Path, capsys: pytest.CaptureFixture) -> dict:
    """Make a run; return what it wrote: epochs, test, weights, and the list of a user with its reasons."""
    data = ["--data_dir", str(folder / "data"), "--run_dir", str(run_dir)]
    assert main.main([*data, "--epochs", "3", "--num_threads", "1", "--embedding_dim", "8", "--ensemble_size", "2",
                      "--hidden_dim", "8", *RUNS[name]]) == 0
    with open(run_dir / "metrics.csv", encoding="utf-8") as file:
        epochs = [{column: float(row[column]) for column in ("train_loss", "train_rmse", "val_rmse", "val_mae", "lr")}
                  for row in csv.DictReader(file)]
    test = json.loads((run_dir / "test_metrics.json").read_text(encoding="utf-8"))
    del test["train_s"]
    best = torch.load(run_dir / "best.pt", weights_only=True)
    weights = {key: summary(value) for key, value in best["model"].items()}
    capsys.readouterr()
    assert rec.main([*data, "--json", "--explain", "--top_n", "4"]) == 0
    lines = json.loads(capsys.readouterr().out)["recommendations"]
    listed = [[line["movie_id"], line["stars"], *[reason["effect"] for reason in line["because"]]] for line in lines]
    return {"epochs": epochs, "test": test, "weights": weights, "list": listed, "settings": best["settings"],
            "config": {key: value for key, value in best["config"].items() if key != "without"}}


def summary(values: torch.Tensor) -> list[float]:
    """Return mean, root mean square and a sum that knows the order."""
    flat = values.double().flatten()
    order = torch.linspace(1, 2, len(flat), dtype=torch.float64)
    return [float(flat.mean()), float(flat.square().mean().sqrt()), float((flat * order).mean())]


def digests_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every raw file, of arrays where they are compressed."""
    digests = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                content = b"".join(np.ascontiguousarray(arrays[name]).astype("<f4").round(3).tobytes()
                                   for name in sorted(arrays) if arrays[name].dtype.kind in "fiu")
        else:
            content = path.read_bytes()
        digests[path.name] = hashlib.sha256(content).hexdigest()[:16]
    return digests


def flat(value: object, place: str = "") -> dict[str, object]:
    """Return the leaves of nested dicts and lists by their places."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for name, inner in items for key, leaf in flat(inner, f"{place}/{name}").items()}
    return {place: value}


def kept() -> dict:
    return json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else {}


def hold(name: str, figures: dict) -> None:
    """Compare figures with those kept, or keep them where RENEW_GOLDEN is set."""
    if os.environ.get("RENEW_GOLDEN"):
        rounded = json.loads(json.dumps(figures), parse_float=lambda text: float(f"{float(text):.9g}"))
        GOLDEN.write_text(json.dumps(kept() | {name: rounded}, indent=0) + "\n", encoding="utf-8")
        return
    expected, found = flat(kept()[name]), flat(json.loads(json.dumps(figures)))
    assert found.keys() == expected.keys()
    wrong = {place: (value, found[place]) for place, value in expected.items()
             if (abs(found[place] - value) > TOLERANCE * max(1, abs(value)) if isinstance(value, float)
                 else found[place] != value)}
    assert not wrong


@pytest.mark.parametrize("name", RUNS)
def test_a_run_gives_the_figures_it_gave(name, golden_data, tmp_path, capsys):
    hold(name, figures_of(name, golden_data, tmp_path / "run", capsys))


def test_the_generator_writes_the_bytes_it_wrote(golden_data, tmp_path, monkeypatch):
    hold("generator", digests_of(golden_data / "raw"))
    monkeypatch.setattr(synthetic_netflix, "CHUNK_RATINGS", 300)
    generate(tmp_path)
    hold("generator in chunks", digests_of(tmp_path))
