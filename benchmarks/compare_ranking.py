"""Order all unseen movies by the towers and by what a user would otherwise install, and measure the lists on test.

    python benchmarks/compare_ranking.py --data_dir data/processed --seeds 3
    python benchmarks/compare_ranking.py --data_dir data/u1 data/u2 --models popularity,ease,two_tower

Reads processed data sets (preprocessing/); of several, and of all seeds, it prints mean and standard deviation.
Relevant are test movies of 4 stars and more; candidates are all movies with training ratings that the user has not
rated before the test; users without a relevant test movie are left out (training.metrics.evaluate_ranking).
    two_tower    main.py --no-refit, a row per order that its vectors give: the highest predicted stars (rating)
                 and, where the model has a second output, relevance
    the others   benchmarks/ranking_peers.py; settings are chosen by NDCG@10 on the validation part, by --trials fits on
                 the training part, seed 0; fitted on both with the chosen ones. The test part is read once per fit.
MEDIAN is that of the numbers of training ratings over all places of all lists of 10, RARE the share of places with
movies of fewer than 5. fit_s is a fit with the conversion of the data, for the towers train_s of test_metrics.json
(until the chosen epoch, without validation); tune_s, in the JSON, is the choice of settings. What takes no seed runs
once per data set. The last line is JSON. Needs requirements-bench.txt.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from tqdm import tqdm

from benchmarks.compare_accuracy import (
    add_flags,
    check,
    checked,
    choose_models,
    exit_code,
    format_cell,
    summarize,
    train_towers,
)
from benchmarks.peers import choose_settings
from benchmarks.ranking_peers import PACKAGES, PEERS, evaluate, validation_ndcg
from models.checkpoint import load_model
from training.batches import DataSet, load_dataset
from training.evaluation import scorer
from training.metrics import median
from training.relevance import relevance_scorer

MODELS = (*PEERS, "two_tower")
MEASURES = ("ndcg@10", "recall@10", "recall@50", "mrr", "coverage@10", "median_popularity@10", "rare@10", "fit_s")
COLUMNS = ("NDCG@10", "RECALL@10", "RECALL@50", "MRR", "COVERAGE@10", "MEDIAN", "RARE", "FIT S")
# What the towers' vectors can be ordered by: (model, known ratings, stars_step, day) -> scorer, or None without it.
TOWER_ORDERS = {"rating": scorer, "relevance": relevance_scorer}


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code: 0 done, 1 the work failed, 130 interrupted."""
    return exit_code(compare, parse_args(argv))


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the flags."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, MODELS, "all whose packages are installed")
    parser.add_argument("--trials", type=int, default=24, metavar="N",
                        help="most settings of a peer to try per data set (default: %(default)s)")
    return checked(parser, parser.parse_args(argv), MODELS, ("seeds", "num_threads", "trials"))


def compare(args: argparse.Namespace) -> None:
    """Run everything; print the table and the line of JSON."""
    torch.set_num_threads(args.num_threads)
    models = choose_models(args.models, MODELS, PEERS, PACKAGES)
    data_sets = {data_dir: check(data_dir) for data_dir in args.data_dir}
    measured: dict[str, list[dict]] = {}
    tried: dict[str, dict[str, list[dict]]] = {str(data_dir): {} for data_dir in data_sets}
    tune_s: dict[str, list[float]] = {}
    pairs = [(data_dir, name) for data_dir in data_sets for name in models]
    with tqdm(pairs, unit=" models", disable=None) as bar:
        for data_dir, name in bar:
            settings = {}
            if name in PEERS and PEERS[name].grid:
                bar.set_description(f"{data_dir.name} {name}, settings")
                start = time.perf_counter()
                ndcg = partial(validation_ndcg, name, load_dataset(data_dir), args.num_threads)
                rows = choose_settings(PEERS[name].grid, args.trials, ndcg, "ndcg@10", highest=True)
                tune_s.setdefault(name, []).append(time.perf_counter() - start)
                tried[str(data_dir)][name] = rows
                settings = {key: value for key, value in rows[0].items() if key != "ndcg@10"}
            for seed in range(args.seeds if name == "two_tower" or PEERS[name].is_random else 1):
                bar.set_description(f"{data_dir.name} {name}, seed {seed}")
                if name == "two_tower":
                    results = run_towers(data_dir, data_sets[data_dir], seed, args.num_threads)
                else:
                    results = {name: run_peer(name, data_sets[data_dir], seed, args.num_threads, settings)}
                for row, measures in results.items():
                    measured.setdefault(row, []).append(measures)
                    bar.write(f"{data_dir.name} {row}, seed {seed}: NDCG@10 {measures['ndcg@10']:.4f}, "
                              f"{measures['fit_s']:.1f} s {settings or ''}", file=sys.stderr)
    results = {row: summarize(runs, MEASURES) for row, runs in measured.items()}
    for name, seconds in tune_s.items():
        results[name]["tune_s"] = statistics.fmean(seconds)
    catalogue = statistics.fmean(catalogue_median(data) for data in data_sets.values())
    print_table(results, args, list(data_sets.values()), catalogue)
    print(json.dumps({"results": results, "catalogue_median_popularity": catalogue, "tried": tried,
                      "data_dirs": list(tried), "seeds": args.seeds, "trials": args.trials,
                      "num_threads": args.num_threads}))


def run_peer(name: str, data: DataSet, seed: int, num_threads: int, settings: dict) -> dict[str, float]:
    """Fit a peer on all that is known before the test and measure its order."""
    start = time.perf_counter()
    score_users = PEERS[name].fit(data, seed, num_threads, **settings)
    fit_s = time.perf_counter() - start
    return {**evaluate(score_users, data, [data.train], data.test), "fit_s": fit_s}


def run_towers(data_dir: Path, data: DataSet, seed: int, num_threads: int) -> dict[str, dict[str, float]]:
    """Train the towers in a temporary folder and measure each order they have: {"two_tower_rating": .., ..}."""
    with tempfile.TemporaryDirectory() as folder:
        written = train_towers(data_dir, Path(folder), seed, num_threads, ["--no-refit"])
        model, _ = load_model(Path(folder) / "best.pt", data.meta["fingerprint"])
        orders = {order: make(model, data.train, data.meta["stars_step"], data.last_day)
                  for order, make in TOWER_ORDERS.items()}
        return {f"two_tower_{order}": {**evaluate(score_users, data, [data.train], data.test),
                                       "fit_s": written["train_s"]}
                for order, score_users in orders.items() if score_users is not None}


def catalogue_median(data: DataSet) -> float:
    """Return the median number of training ratings of the movies that have any."""
    number = torch.tensor(data.movies.num_train_ratings)
    return median(number[number > 0])


def print_table(results: dict[str, dict], args: argparse.Namespace, data_sets: list[DataSet], catalogue: float) -> None:
    """Print the protocol and a row per order, mean and standard deviation, the best NDCG last."""
    splits = ", ".join(dict.fromkeys(data.meta["split"]["method"] for data in data_sets))
    print(f"{', '.join(str(path) for path in args.data_dir)}; split {splits}; {args.seeds} seed(s), {args.trials} "
          f"trials, {args.num_threads} thread(s); median of the catalogue {catalogue:,.1f} training ratings")
    rows = [("", *COLUMNS)]
    for name, row in sorted(results.items(), key=lambda item: item[1]["ndcg@10"] or 0):
        title = PEERS[name].title if name in PEERS else name.replace("two_tower_", "two towers, ")
        rows.append((title, *(format_cell(row[measure], row[f"{measure}_std"], digits)
                              for measure, digits in zip(MEASURES, (4, 4, 4, 4, 4, 0, 4, 1), strict=True))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for title, *cells in rows:
        print(f"{title:<{widths[0]}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths[1:],
                                                                                             strict=True)))


if __name__ == "__main__":
    sys.exit(main())
