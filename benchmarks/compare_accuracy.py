"""Fit the towers and what a user would otherwise install on the same split, and measure all on its test part once.

    python benchmarks/compare_accuracy.py --data_dir data/processed --seeds 5
    python benchmarks/compare_accuracy.py --data_dir data/u1 data/u2 data/u3 data/u4 data/u5 --models two_tower,myfm

Reads processed data sets (preprocessing/); of several, and of all seeds, it prints mean and standard deviation.
    two_tower    main.py with default flags: trained on the training part, the epoch chosen by validation, then, up to
                 10 million ratings, fitted again to training and validation ratings. With --no-refit validation only
                 joins what is known of users and movies at test
    the others   fitted on training and validation ratings together, with the settings of benchmarks/peers.py; with
                 --trials N, with those that predict the validation part best of N settings tried, or of all if there
                 are fewer
All predict the same test ratings and rank the same movies by training.metrics; peers' predictions are cut to the scale.
fit_s is the fit alone: without reading and converting data, and for the towers train_s of test_metrics.json (until the
chosen epoch, without validation, a refit included). OVER TOWERS is how much higher a model's RMSE is than the towers'
on the same ratings, the mean over data sets or, of a single one, over seeds, and half of the width of its 95 % interval
(Student's t). wall_s, in the JSON, is all of a run, from a data set in memory
(for the towers: on disk) to its measures. What takes no seed runs once per data set. Means over the runs; the
deviation is that of a sample, null for a single run. The last line is JSON. Needs requirements-bench.txt.
"""

import argparse
import contextlib
import io
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from tqdm import tqdm

import main as train_command
from benchmarks.peers import PACKAGES, PEERS, Fitted, choose_settings, importable, validation_rmse
from models.ops.ranks import ALONE
from preprocessing.dataset import DataError
from training.batches import DataSet, load_dataset
from training.metrics import RatingErrors, evaluate_ranking

MODELS = (*PEERS, "two_tower")
MEASURES = ("rmse", "mae", "ndcg@10", "recall@10", "fit_s", "wall_s")


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code: 0 done, 1 the work failed, 130 interrupted."""
    return exit_code(compare, parse_args(argv))


def exit_code(work: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Do the work; say in a sentence what stopped it, and return the exit code."""
    try:
        work(args)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'the temporary folder'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    return 0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the flags."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, MODELS, "all whose packages are installed, but libmf")
    parser.add_argument("--trials", type=int, default=0, metavar="N", help="settings of each peer to try on the "
                        "validation part of the first data set, by RMSE (default: 0, those of benchmarks/peers.py)")
    parser.add_argument("--refit", action=argparse.BooleanOptionalAction, help="passed to main.py (default: neither)")
    args = checked(parser, parser.parse_args(argv), MODELS)
    if args.trials < 0:
        parser.error(f"--trials must be at least 0, not {args.trials}")
    return args


def add_flags(parser: argparse.ArgumentParser, models: tuple[str, ...], default: str) -> None:
    """Add the flags that comparisons share."""
    parser.add_argument("--data_dir", type=Path, nargs="+", default=[Path("data/processed")], metavar="DIR",
                        help="processed data sets, such as one per split; averaged over (default: data/processed)")
    parser.add_argument("--models", metavar="NAMES",
                        help=f"comma separated, of: {', '.join(models)} (default: {default})")
    parser.add_argument("--seeds", type=int, default=1, metavar="N",
                        help="how many: runs per data set with seeds 0 to N-1 (default: 1)")
    parser.add_argument("--num_threads", type=int, default=os.cpu_count(), metavar="N",
                        help="CPU threads of what can use many (default: one per core)")


def checked(parser: argparse.ArgumentParser, args: argparse.Namespace, models: tuple[str, ...],
            counts: tuple[str, ...] = ("seeds", "num_threads")) -> argparse.Namespace:
    """Return the flags with --models as a list; exit with code 2 where one is out of range."""
    check_counts(parser, args, counts)
    args.models = names_of(parser, "--models", args.models, models, "model")
    return args


def check_counts(parser: argparse.ArgumentParser, args: argparse.Namespace, counts: tuple[str, ...]) -> None:
    """Exit with code 2 where a number is below 1."""
    for name in counts:
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, not {getattr(args, name)}")


def check_is_png(parser: argparse.ArgumentParser, flag: str, picture: Path | None) -> None:
    """Exit with code 2 where a flag names another kind of file."""
    if picture is not None and picture.suffix != ".png":
        parser.error(f"{flag} {picture} must end with .png")


def check_folder_of(flag: str, picture: Path | None) -> None:
    """Raise DataError where the folder of a flag's picture is not there."""
    if picture is not None and not picture.resolve().parent.is_dir():
        raise DataError(f"the folder of {flag} {picture} does not exist; make it first")


def names_of(parser: argparse.ArgumentParser, flag: str, text: str | None, known: Collection[str],
             kind: str) -> list[str] | None:
    """Return the names that a flag lists, separated by commas, each once; None where the flag is not given. Exit with
    code 2 where one is not known."""
    if text is None:
        return None
    names = list(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in known:
            parser.error(f"{flag} has no {kind} {name!r}; choose of {', '.join(known)}")
    return names


def compare(args: argparse.Namespace) -> None:
    """Run everything; print the table and the line of JSON."""
    torch.set_num_threads(args.num_threads)
    models = choose_models(args.models, MODELS, PEERS, PACKAGES)
    if not importable("scipy.stats"):
        raise DataError("the intervals need scipy, which cannot be imported; run: pip install -r "
                        "requirements-bench.txt")
    data_sets = {data_dir: check(data_dir) for data_dir in args.data_dir}
    runs = [(data_dir, name, seed) for data_dir in data_sets for name in models
            for seed in range(args.seeds if name == "two_tower" or PEERS[name].is_random else 1)]
    measured: dict[str, list[dict]] = {name: [] for name in models}
    tried: dict[str, list[dict]] = {}
    with tqdm(runs, unit=" runs", disable=None) as bar:
        for data_dir, name, seed in bar:
            bar.set_description(f"{data_dir.name} {name}, seed {seed}")
            start = time.perf_counter()
            if name == "two_tower":
                measures = run_towers(data_dir, seed, args.num_threads, args.refit)
            else:
                if args.trials and name not in tried:
                    bar.set_description(f"{data_dir.name} {name}, settings")
                    measure = partial(validation_rmse, PEERS[name], load_dataset(data_dir), args.num_threads)
                    tried[name] = choose_settings(PEERS[name].grid, args.trials, measure, "rmse")
                    start = time.perf_counter()
                best = tried.get(name, [])[:1] or [{}]
                settings = {key: value for key, value in best[0].items() if key != "rmse"}
                data = data_sets[data_dir]
                measures = evaluate(PEERS[name].fit(data, seed, args.num_threads, **settings), data)
            measured[name].append({**measures, "wall_s": time.perf_counter() - start})
            bar.write(f"{data_dir.name} {name}, seed {seed}: RMSE {measures['rmse']:.4f}, {measures['fit_s']:.1f} s",
                      file=sys.stderr)
    results = {name: summarize(rows) for name, rows in measured.items()}
    towers = by_data_set(measured.get("two_tower", []), len(data_sets))
    for name, rows in measured.items():
        over = paired_difference(by_data_set(rows, len(data_sets)), [] if name == "two_tower" else towers)
        results[name]["rmse_over_towers"], results[name]["rmse_over_towers_half_width"] = over
    for name in models:
        if "no_ranking" in measured[name][0]:
            results[name]["no_ranking"] = measured[name][0]["no_ranking"]
    print_table(results, args, list(data_sets.values()))
    print(json.dumps({"results": results, "tried": tried, "data_dirs": [str(path) for path in data_sets],
                      "seeds": args.seeds, "trials": args.trials, "refit": args.refit,
                      "num_threads": args.num_threads}))


def add_cpu_time(parser: argparse.ArgumentParser) -> None:
    """Add the flags of programs that can count processor seconds."""
    parser.add_argument("--num_threads", type=int, default=1, metavar="N", help="CPU threads (default: %(default)s)")
    parser.add_argument("--cpu_time", action="store_true", help="count processor seconds instead of elapsed ones: what "
                        "one thread would take on an idle machine, for one that others use too")


def check_cpu_time(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with code 2 where processor seconds of many threads are asked for, or no thread."""
    if args.num_threads < 1:
        parser.error(f"--num_threads must be at least 1, not {args.num_threads}")
    if args.cpu_time and args.num_threads > 1:
        parser.error("--cpu_time adds up the seconds of all threads, so it needs --num_threads 1, not "
                     f"{args.num_threads}")


def clock(cpu_time: bool) -> contextlib.AbstractContextManager:
    """Let the trainer and the peers take their seconds from the processor, within a with block, if wanted."""
    return mock.patch("time.perf_counter", time.process_time) if cpu_time else contextlib.nullcontext()


def choose_models(named: list[str] | None, models: tuple[str, ...], peers: dict, packages: dict[str, str]) -> list[str]:
    """Return the models to run: those named, else the default ones whose packages can be imported.

    Raises:
        DataError: a named one's package is missing.
    """
    missing = {package for package in packages if not importable(package)}
    if named is None:
        return [name for name in models if name not in peers
                or (peers[name].is_default and peers[name].package not in missing)]
    for name in named:
        if name in peers and peers[name].package in missing:
            raise DataError(f"{name} needs {packages[peers[name].package]}, which cannot be imported; run: pip install "
                            "-r requirements-bench.txt, or leave it out of --models")
    return named


def check(data_dir: Path) -> DataSet:
    """Read a data set with all that is known before its test as the training part."""
    data = load_dataset(data_dir, with_validation=True)
    for part, ratings in (("training", data.train), ("test", data.test)):
        if not len(ratings):
            raise DataError(f"{data_dir} has no {part} ratings; preprocess it with another --split")
    return data


def run_towers(data_dir: Path, seed: int, num_threads: int, refit: bool | None) -> dict[str, float]:
    """Train the towers in a temporary folder; return what was written about the test."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [] if refit is None else ["--refit" if refit else "--no-refit"]
        written = train_towers(data_dir, Path(folder), seed, num_threads, flags)
    return {**written["two_tower"], "fit_s": written["train_s"]}


def train_towers(data_dir: Path, run_dir: Path, seed: int, num_threads: int, flags: Sequence[str] = ()) -> dict:
    """Run main.py with default flags but those given, quietly; return its test_metrics.json."""
    flags = ["--data_dir", str(data_dir), "--run_dir", str(run_dir), "--seed", str(seed), "--num_threads",
             str(num_threads), *flags]
    run_dir.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(io.StringIO()):
        train_command.run(train_command.parse_args(flags), ALONE)
    return json.loads((run_dir / "test_metrics.json").read_text(encoding="utf-8"))


def evaluate(fitted: Fitted, data: DataSet) -> dict[str, float | str | None]:
    """Measure a fitted peer on the test part, as main.py does the towers; what it cannot do is None."""
    errors = test_errors(fitted, data)
    measures = {"rmse": errors.rmse, "mae": errors.mae, "ndcg@10": None, "recall@10": None, "fit_s": fitted.fit_s}
    if fitted.no_ranking:
        return measures | {"no_ranking": fitted.no_ranking}
    recommendable = torch.tensor(data.movies.num_train_ratings) > 0
    return measures | evaluate_ranking(fitted.score_users, [data.train, data.validation], data.test, recommendable,
                                       stars_step=data.meta["stars_step"], stars_range=data.meta["stars_range"])


def test_errors(fitted: Fitted, data: DataSet) -> RatingErrors:
    """Sum a fitted peer's errors over the test part, its predictions cut to the scale."""
    errors = RatingErrors()
    predicted = fitted.predict(data.test).clamp(*data.meta["stars_range"])
    errors.add(predicted, data.test.stars.float() * data.meta["stars_step"])
    return errors


def summarize(rows: list[dict], names: tuple[str, ...] = MEASURES) -> dict[str, float | int | None]:
    """Return mean and standard deviation of each measure over runs; None where a run has none or is not finite."""
    result: dict[str, float | int | None] = {"runs": len(rows)}
    for name in names:
        values = [row[name] for row in rows]
        known = all(value is not None and math.isfinite(value) for value in values)
        result[name] = statistics.fmean(values) if known else None
        result[f"{name}_std"] = statistics.stdev(values) if known and len(values) > 1 else None
    return result


def by_data_set(rows: list[dict], num_data_sets: int) -> list[list[float]]:
    """Return the RMSE of each run, data set by data set, in the order of the seeds."""
    runs = len(rows) // num_data_sets
    return [[row["rmse"] for row in rows[start:start + runs]] for start in range(0, len(rows), max(runs, 1))]


def paired_difference(model: list[list[float]], towers: list[list[float]]) -> tuple[float | None, float | None]:
    """Return how much higher a model's RMSE is than the towers', and half of the width of the 95 % interval of this.

    Pairs are the means of a data set, for its seeds are not independent; of a single data set they are the seeds. None
    where there are no towers, or one pair alone.
    """
    if len(model) == len(towers) == 1 and len(model[0]) == len(towers[0]):
        pairs = list(zip(model[0], towers[0], strict=True))
    else:
        pairs = [(statistics.fmean(of_model), statistics.fmean(of_towers))
                 for of_model, of_towers in zip(model, towers, strict=False)]
    differences = [one - other for one, other in pairs]
    if not differences or not all(map(math.isfinite, differences)):
        return None, None
    if len(differences) == 1:
        return differences[0], None
    from scipy.stats import t

    error = statistics.stdev(differences) / len(differences) ** 0.5
    return statistics.fmean(differences), float(t.ppf(0.975, len(differences) - 1)) * error


def print_table(results: dict[str, dict], args: argparse.Namespace, data_sets: list[DataSet]) -> None:
    """Print the protocol and a row per model, mean and standard deviation, the best RMSE last."""
    splits = ", ".join(dict.fromkeys(data.meta["split"]["method"] for data in data_sets))
    sizes = [len(data.test) for data in data_sets]
    print(f"{', '.join(str(path) for path in args.data_dir)}; split {splits}; {sum(sizes) / len(sizes):,.0f} test "
          f"ratings, {args.seeds} seed(s), {args.num_threads} thread(s)")
    names = "".join(f"{name.upper():>18}" for name in MEASURES[:4])
    print(f"{'':<24}{names}{'OVER TOWERS':>19}{'FIT S':>10}{'RUNS':>6}")
    for name, row in sorted(results.items(), key=lambda item: -(item[1]["rmse"] or math.inf)):
        towers = "two towers" + (", no refit" if args.refit is False else "")
        title = towers if name == "two_tower" else PEERS[name].title
        cells = "".join(f"{format_cell(row[measure], row[f'{measure}_std']):>18}" for measure in MEASURES[:4])
        over = format_cell(row["rmse_over_towers"], row["rmse_over_towers_half_width"], sign=True)
        print(f"{title:<24}{cells}{'' if name == 'two_tower' else over:>19}{row['fit_s']:>10.1f}{row['runs']:>6}")


def format_cell(mean: float | None, deviation: float | None, digits: int = 4, sign: bool = False) -> str:
    """Return a mean, if wanted with its sign also where it is positive, with its deviation as text."""
    if mean is None:
        return "-"
    return f"{mean:{'+' if sign else ''}.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


if __name__ == "__main__":
    sys.exit(main())
