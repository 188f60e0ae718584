"""Ask the towers, and what a user would otherwise install, about people who were not there in training.

    python benchmarks/compare_new_users.py --data_dir data/processed --seeds 3 --picture docs/new_users.png
    python benchmarks/compare_new_users.py --data_dir demo/processed --truth demo/raw/planted_truth.npz

Of a processed data set (preprocessing/) two sets of --users people are left out whole, chosen by the seed among those
with more ratings than the largest of --sizes. Everything is fitted to the ratings of the people who stay. Somebody new
gives k of their ratings, k being each of --sizes, and is asked for all those after the largest: at random, or their
later ones (--order). So the questions are the same for every k. With --order chosen, popular or controversial, the
ratings that are given at random are given in the order in which somebody is asked for them, five movies at once, of
which they rate those that they may give: what `rec.py --ask` lists, the movies with the most ratings, or those with the
largest number of ratings times their variance. How many movies are listed until then is printed too.
    two_tower    main.py with default flags on a data set of the people who stay, made by table_preprocess.py; then
                 Recommender.history_from, predict, and recommend in each order that the run has, as of the last day
    the others   benchmarks/new_user_peers.py; their settings are chosen by the people of validation, one of the two
                 sets: of --trials fits (36 if that is more, where a model needs no package and so is fitted at once)
                 those of the lowest mean RMSE of all k above 0, or, where a model only orders, of the highest mean
                 NDCG@10
Then the people of the test, the other set, are asked, once per fit. To choose among models, --validation asks those of
validation in their place, and leaves the test unread; --main_flags "--without fold_in" trains the towers with further
flags of main.py.

RMSE and MAE are over all questions, predictions are cut to the scale. NDCG@10 is the mean over people; relevant are
questions of 4 stars and more; candidates are all movies with training ratings but those that the person gives at the
largest k, so they too are the same for every k. A movie that nobody who stays has rated is nobody's question. With
--truth, of synthetic data, RMSE TO TRUTH compares predictions with the expected stars instead of the noisy ones, and a
row says what the truth itself would reach.

Prints a table per measure, the mean over seeds and their deviation; the last line is JSON. Needs
requirements-bench.txt.
"""

import argparse
import json
import math
import shlex
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.compare_accuracy import (
    check_folder_of,
    check_is_png,
    checked,
    choose_models,
    exit_code,
    format_cell,
    train_towers,
)
from benchmarks.left_out import (
    ASKERS,
    ORDERS,
    Person,
    all_when_asked,
    history_of,
    people_of,
    read_truth,
    set_apart,
)
from benchmarks.new_user_peers import PACKAGES, PEERS, Given, Scorer
from benchmarks.peers import choose_settings
from preprocessing.dataset import ratings_frame
from recommending.recommender import Recommender
from training.batches import DataSet, load_dataset
from training.metrics import RatingErrors, ndcg_and_recall, relevant_stars, top_movies

MODELS = (*PEERS, "two_tower")
SIZES = (0, 1, 2, 3, 5, 10, 20, 50)
AT_ONCE = 36  # settings of a peer that needs no package, which takes no time to fit
MEASURES = {"rmse": "RMSE", "mae": "MAE", "ndcg@10": "NDCG@10", "truth_rmse": "RMSE TO TRUTH"}
TITLES = {name: peer.title for name, peer in PEERS.items()} | {
    "two_tower": "two towers", "two_tower_relevance": "two towers, by relevance", "truth": "the planted truth"}
STYLES = {  # colours of Okabe and Ito (2008), which the colour-blind tell apart, and markers for print
    "two_tower": ("#0072B2", "o"), "als": ("#009E73", "^"), "two_means": ("#E69F00", "s"), "movie_mean": ("0.4", ""),
    "truth": ("black", ""),
}


@dataclass
class Answers:
    """What a model says to people (B) who give k ratings: stars of each one's questions, and a list of 10."""

    stars: list[np.ndarray] | None  # float (Q,) each; None of a model that only orders
    listed: torch.Tensor | None  # int64 (B, 10), -1 where a list is shorter


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code: 0 done, 1 the work failed, 130 interrupted."""
    return exit_code(compare, parse_args(argv))


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the flags."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data_dir", type=Path, default=Path("data/processed"), metavar="DIR",
        help="processed data set (default: %(default)s)")
    add("--models", metavar="NAMES", help=f"comma separated, of: {', '.join(MODELS)} (default: all whose packages are "
        "installed)")
    add("--order", choices=[*ORDERS, *ASKERS], default="random", help="which ratings are given (default: %(default)s)")
    add("--sizes", type=typed_sizes, default=SIZES, metavar="K,K", help="how many ratings are given (default: "
        f"{','.join(map(str, SIZES))})")
    add("--users", type=int, default=400, metavar="N", help="people in each of the two sets, at most a tenth of all "
        "(default: %(default)s)")
    add("--seeds", type=int, default=1, metavar="N", help="how many: runs with seeds 0 to N-1, each with other people "
        "(default: 1)")
    add("--trials", type=int, default=24, metavar="N", help="most settings of a peer to try (default: %(default)s); of "
        f"one that needs no package {AT_ONCE}, if that is more")
    add("--truth", type=Path, metavar="FILE", help="planted_truth.npz of a synthetic data set")
    add("--picture", type=Path, metavar="FILE.png", help="draw the RMSE by the number of ratings given")
    add("--validation", action="store_true", help="ask the people who choose settings, and leave those of the test")
    add("--main_flags", type=shlex.split, default=[], metavar="TEXT", help="further flags of main.py, as one text")
    add("--num_threads", type=int, default=1, metavar="N", help="CPU threads (default: %(default)s)")
    args = checked(parser, parser.parse_args(argv), MODELS, ("users", "seeds", "trials", "num_threads"))
    check_is_png(parser, "--picture", args.picture)
    return args


def typed_sizes(text: str) -> tuple[int, ...]:
    """Read the value of --sizes."""
    numbers = text.split(",")
    if not all(number.isascii() and number.isdigit() for number in numbers) or not any(map(int, numbers)):
        raise argparse.ArgumentTypeError(f"{text!r} must be whole numbers, not all 0, such as 0,1,5")
    return tuple(sorted({int(number) for number in numbers}))


def compare(args: argparse.Namespace) -> None:
    """Run everything; print the tables and the line of JSON."""
    torch.set_num_threads(args.num_threads)
    models = choose_models(args.models, MODELS, PEERS, PACKAGES)
    check_folder_of("--picture", args.picture)
    ratings = ratings_frame(args.data_dir, columns=["user_id", "movie_id", "stars", "date"])
    truth = None if args.truth is None else read_truth(args.truth)
    measured: dict[str, list[dict[str, list[float | None]]]] = {}
    chosen: dict[str, list[dict]] = {}
    counts = []
    with tqdm(total=args.seeds * len(models), unit=" models", disable=None) as bar:
        for seed in range(args.seeds):
            with tempfile.TemporaryDirectory() as folder:
                rest = Path(folder) / "rest"
                left_out = set_apart(args.data_dir, ratings, args.users, max(args.sizes), seed, rest)
                data = load_dataset(rest, with_validation=True)
                test, validation = (people_of(ratings, ids, data, max(args.sizes),
                                              args.order if args.order in ORDERS else "random", seed, truth)
                                    for ids in left_out)
                recommender, listed = None, {}
                if "two_tower" in models or args.order == "chosen":
                    bar.set_description(f"training, seed {seed}")
                    train_towers(rest, Path(folder) / "run", seed, args.num_threads, args.main_flags)
                    recommender = Recommender.load(Path(folder) / "run", rest)
                if args.order in ASKERS:
                    ask = ASKERS[args.order](data, recommender)
                    (test, of_test), (validation, of_validation) = (all_when_asked(people, ask)
                                                                    for people in (test, validation))
                    mean = (of_validation if args.validation else of_test).mean(0)
                    listed = {size: float(mean[size - 1]) for size in args.sizes if size}
                people = validation if args.validation else test
                counts.append({"people": len(people), "questions": sum(len(person.asked) for person in people),
                               "users": data.num_users, "ratings": len(data.train), "listed": listed})
                for name in models:
                    bar.set_description(f"{name}, seed {seed}")
                    if name == "two_tower":
                        results = ask_towers(recommender, data, people, args.sizes)
                    else:
                        settings = best_settings(name, data, validation, args)
                        chosen.setdefault(name, []).append(settings)
                        score = PEERS[name].fit(data, seed, args.num_threads, **settings)
                        results = {name: measure_peer(name, score, data, people, args.sizes)}
                    for row, measures in results.items():
                        measured.setdefault(row, []).append(measures)
                        settings = chosen[name][-1] if chosen.get(name) else ""
                        bar.write(f"{row}, seed {seed}: {one_line(measures)} {settings or ''}", file=sys.stderr)
                    bar.update()
                if truth is not None:
                    answers = [Answers([person.expected for person in people], None)] * len(args.sizes)
                    measured.setdefault("truth", []).append(
                        measure(answers, data, people) | {"truth_rmse": [None] * len(args.sizes)})
    results = {row: summarize(runs) for row, runs in measured.items()}
    asked = "validation" if args.validation else "test"
    protocol = (f"{args.data_dir.resolve().name}, {counts[0]['people']:,} people of {asked}, "
                f"{counts[0]['questions']:,} questions, {counts[0]['users']:,} users stay; given: {args.order}; "
                f"{args.seeds} seed(s)")
    print_tables(results, args, protocol, counts)
    if args.picture is not None:
        plot(args.picture, results, args.sizes, protocol)
        print(f"see {args.picture}")
    print(json.dumps({"results": results, "sizes": args.sizes, "settings": chosen, "left_out": counts,
                      "data_dir": str(args.data_dir), "order": args.order, "users": args.users, "seeds": args.seeds,
                      "trials": args.trials, "validation": args.validation, "main_flags": args.main_flags,
                      "num_threads": args.num_threads}))


def ask_towers(recommender: Recommender, data: DataSet, people: list[Person],
               sizes: tuple[int, ...]) -> dict[str, dict[str, list[float | None]]]:
    """Ask the towers, and measure the orders of their lists: by rating, and by relevance where they have it."""
    movie_ids = data.movies.movie_id.tolist()
    orders = ("rating", "relevance") if recommender.model.relevance is not None else ("rating",)
    answers: dict[str, list[Answers | None]] = {order: [] for order in orders}
    for size in sizes:
        stars, listed = [], {order: [] for order in orders}
        for person in people:
            history = history_of(recommender, person, size)
            stars.append(recommender.predict(history, [movie_ids[movie] for movie in person.asked_idx.tolist()]))
            may_be_given = {movie_ids[movie] for movie in person.given_idx.tolist()}
            for order, lists in listed.items():
                rows = recommender.recommend(history, 10 + len(may_be_given), rank_by=order)
                best = [recommender.movie_idx_of(row.movie_id) for row in rows if row.movie_id not in may_be_given][:10]
                lists.append(best + [-1] * (10 - len(best)))
        for order, lists in listed.items():
            answers[order].append(Answers(stars if order == "rating" else None, torch.tensor(lists)))
    return {"two_tower" if order == "rating" else f"two_tower_{order}": measure(of_order, data, people)
            for order, of_order in answers.items()}


def best_settings(name: str, data: DataSet, people: list[Person], args: argparse.Namespace) -> dict:
    """Return the settings of a peer's grid, or of a sample of it, that answer people best."""
    peer, sizes = PEERS[name], [size for size in args.sizes if size]
    measured = "rmse" if peer.predicts_stars else "ndcg@10"

    def measure(**settings: object) -> float:
        score = peer.fit(data, 0, args.num_threads, **settings)
        return statistics.fmean(measure_peer(name, score, data, people, sizes)[measured])

    num_trials = args.trials if peer.package else max(args.trials, AT_ONCE)
    best = choose_settings(peer.grid, num_trials, measure, measured, highest=not peer.predicts_stars)[:1]
    return {key: value for key, value in best[0].items() if key != measured} if best else {}


def measure_peer(name: str, score: Scorer, data: DataSet, people: list[Person],
                 sizes: tuple[int, ...] | list[int]) -> dict[str, list[float | None]]:
    """Ask a fitted peer, and measure its answers; of a size for which it has none, None."""
    peer, answers = PEERS[name], []
    excluded = torch.tensor(data.movies.num_train_ratings == 0).repeat(len(people), 1)
    for row, person in enumerate(people):
        excluded[row, person.given_idx] = True
    for size in sizes:
        if not size and peer.needs_ratings:
            answers.append(None)
            continue
        given: Given = [(person.given_idx[:size], person.given[:size]) for person in people]
        scores = score(given)  # (B, M)
        low, high = data.meta["stars_range"]
        stars = [scores[row, person.asked_idx].clip(low, high) for row, person in enumerate(people)]
        listed = top_movies(torch.from_numpy(scores).masked_fill(excluded, -torch.inf), 10)
        answers.append(Answers(stars if peer.predicts_stars else None, listed))
    return measure(answers, data, people)


def measure(answers: list[Answers | None], data: DataSet, people: list[Person]) -> dict[str, list[float | None]]:
    """Return the measures of answers, by size; None where there is no answer."""
    lowest = relevant_stars(*data.meta["stars_range"])
    liked = [person.asked_idx[person.asked >= lowest] for person in people]
    asked, expected = (torch.from_numpy(np.concatenate([getattr(person, name) for person in people]))
                       for name in ("asked", "expected"))
    result: dict[str, list[float | None]] = {name: [] for name in MEASURES}
    for answer in answers:
        row: dict[str, float | None] = dict.fromkeys(MEASURES)
        if answer is not None and answer.stars is not None:
            predicted = torch.from_numpy(np.concatenate(answer.stars))
            errors, from_truth = RatingErrors(), RatingErrors()
            errors.add(predicted, asked)
            from_truth.add(predicted, expected)
            row |= {"rmse": errors.rmse, "mae": errors.mae,
                    "truth_rmse": from_truth.rmse if expected.isfinite().all() else None}
        if answer is not None and answer.listed is not None:
            hits = torch.stack([torch.isin(listed, torch.from_numpy(movies))
                                for listed, movies in zip(answer.listed, liked, strict=True)])
            number = torch.tensor([len(movies) for movies in liked])
            ndcg, _ = ndcg_and_recall(hits[number > 0], number[number > 0])
            row["ndcg@10"] = float(ndcg.mean())
        for name, value in row.items():
            result[name].append(value)
    return result


def summarize(runs: list[dict[str, list[float | None]]]) -> dict[str, list[float | None]]:
    """Return mean and deviation of each measure by size over seeds; None where there is none, and no measure that is
    None for every size."""
    result: dict[str, list[float | None]] = {}
    for name in MEASURES:
        by_size = list(zip(*(run[name] for run in runs), strict=True))
        known = [all(value is not None and math.isfinite(value) for value in values) for values in by_size]
        if not any(known):
            continue
        result[name] = [statistics.fmean(values) if sound else None
                        for values, sound in zip(by_size, known, strict=True)]
        result[f"{name}_std"] = [statistics.stdev(values) if sound and len(values) > 1 else None
                                 for values, sound in zip(by_size, known, strict=True)]
    return result


def one_line(measures: dict[str, list[float | None]]) -> str:
    """Return the RMSE by size, or where there is none the NDCG@10."""
    name = "rmse" if any(value is not None for value in measures["rmse"]) else "ndcg@10"
    return f"{MEASURES[name]} {' '.join(format_cell(value, None) for value in measures[name])}"


def print_tables(results: dict[str, dict], args: argparse.Namespace, protocol: str, counts: list[dict]) -> None:
    """Print the protocol, how many movies are listed, and for each measure a row per model and a column per size."""
    print(protocol)
    if counts[0]["listed"]:
        print("movies listed until then: " + ", ".join(
            f"{statistics.fmean(count['listed'][size] for count in counts):.1f} for k = {size}"
            for size in counts[0]["listed"]))
    for name, title in MEASURES.items():
        rows = {row: cells for row, cells in results.items() if name in cells}
        if not rows:
            continue
        width = 17 if args.seeds > 1 else 9
        print(f"\n{title:<26}" + "".join(f"{f'k = {size}':>{width}}" for size in args.sizes))
        for row, cells in rows.items():
            values = zip(cells[name], cells[f"{name}_std"], strict=True)
            print(f"{TITLES[row]:<26}" + "".join(f"{format_cell(*value):>{width}}" for value in values))


def plot(path: Path, results: dict[str, dict], sizes: tuple[int, ...], protocol: str) -> None:
    """Draw the RMSE by the number of ratings given, 900 pixels wide."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5.4), layout="constrained")
    places = range(len(sizes))
    for row, (colour, marker) in STYLES.items():
        if row not in results:
            continue
        points = [(place, rmse, deviation or 0) for place, rmse, deviation in zip(
            places, results[row]["rmse"], results[row]["rmse_std"], strict=True) if rmse is not None]
        x, y, deviation = zip(*points, strict=True)
        ours = row == "two_tower"
        axes.errorbar(x, y, deviation if any(deviation) else None, marker=marker, ms=6, color=colour, capsize=3,
                      lw=2.5 if ours else 1.5, ls="-" if marker else "--", zorder=3 if ours else 2, label=TITLES[row])
    axes.set(xticks=list(places), xticklabels=list(map(str, sizes)), xlabel="ratings given by somebody new",
             ylabel="RMSE of what they are asked (stars)", title=f"People who were not there in training\n{protocol}")
    axes.title.set_fontsize(10)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
