"""Draw the RMSE on the test part against seconds of fitting, for the towers and for the peers beside them.

    python benchmarks/learning_curve.py --data_dir data/processed --out benchmarks/learning_curve.png
    python benchmarks/learning_curve.py --data_dir data/ml1m --rounds svdpp=5,20 --settings als=k:160,l2:0.06 --cpu_time

    two towers   main.py with default flags, measured after every epoch; only the training of the epochs is counted,
                 not validation or this measurement; the star is the end of the second fit, to training and validation
                 ratings for as many epochs as validation chose. Where main.py makes no second fit (beyond 10 million
                 ratings), and with --no-refit, it is the epoch that validation chose
    the peers    as compare_accuracy.py has them, each point a fit of its own from the start, with so many rounds:
                 epochs of SVD and SVD++, iterations of ALS and LIBMF, kept samples of myFM's models; see ROUNDS and
                 --rounds. With --settings, with others: those that compare_accuracy.py --trials has found

All run one after the other with --num_threads threads. Peers are fitted on training and validation ratings; all know
both when they are asked. The picture is of the test part and chooses nothing: settings and the number of epochs come
from validation. Early points far above the bias model lie outside the picture.

Prints a row per point, with the seconds until the towers are as good, over those of the fit; above 1 the peer is
sooner. The last line is JSON with the same. Needs requirements-bench.txt.
"""

import argparse
import itertools
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from tqdm import tqdm

import main as train_command
from benchmarks.compare_accuracy import (
    add_cpu_time,
    check,
    check_cpu_time,
    check_folder_of,
    check_is_png,
    choose_models,
    clock,
    exit_code,
    names_of,
    test_errors,
)
from benchmarks.peers import PACKAGES, PEERS, fit_bias
from models.ops.ranks import ALONE
from training.batches import DataSet, load_dataset
from training.evaluation import fold_in_movies, predict_errors
from training.trainer import Trainer

ROUNDS = {  # the argument of the peer's fit, and its values, the last one being its full fit
    "svd": ("n_epochs", (1, 2, 5, 10, 20)),
    "svdpp": ("n_epochs", (1, 2, 5, 10, 20)),
    "als": ("niter", (1, 2, 3, 5, 10)),
    "libmf": ("nr_iters", (5, 10, 25, 50, 100)),
    "myfm": ("num_samples", (10, 30, 100, 300)),
    "myfm_svdpp": ("num_samples", (10, 30, 100, 300)),
    "myfm_time": ("num_samples", (10, 30, 100, 300)),
}
TOWERS = {"two_tower": "two towers", "second_fit": "the second fit"}
TITLES = {name: PEERS[name].title for name in ROUNDS} | TOWERS
STYLES = {  # colours of Okabe and Ito (2008), which the colour-blind tell apart, and markers for print
    "two_tower": ("#0072B2", "o"), "second_fit": ("#0072B2", "."), "svd": ("#E69F00", "s"), "svdpp": ("#D55E00", "D"),
    "als": ("#009E73", "^"), "libmf": ("#56B4E9", "v"), "myfm": ("#CC79A7", "P"), "myfm_svdpp": ("#8B4513", "X"),
    "myfm_time": ("black", "h"),
}
LABEL_GAP = 0.05  # least distance of two labels, in heights of the axes


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code: 0 done, 1 the work failed, 130 interrupted."""
    args = parse_args(argv)
    with clock(args.cpu_time):
        return exit_code(draw_curves, args)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the flags."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=Path("data/processed"), metavar="DIR",
                        help="processed data set (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/learning_curve.png"), metavar="FILE.png",
                        help="the picture (default: %(default)s)")
    parser.add_argument("--models", metavar="NAMES", help=f"peers, comma separated, of: {', '.join(ROUNDS)} "
                        "(default: all whose packages are installed, but libmf)")
    parser.add_argument("--rounds", type=parse_rounds, nargs="+", default=[], metavar="NAME=N,N",
                        help="how many rounds a peer is fitted with, instead of those of ROUNDS")
    parser.add_argument("--settings", type=parse_settings, nargs="+", default=[], metavar="NAME=KEY:N,KEY:N",
                        help="a peer's settings, instead of those of benchmarks/peers.py")
    parser.add_argument("--refit", action=argparse.BooleanOptionalAction, help="passed to main.py (default: neither)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of all chance (default: %(default)s)")
    add_cpu_time(parser)
    args = parser.parse_args(argv)
    check_cpu_time(parser, args)
    if not 0 <= args.seed < 2**32:  # NumPy's range, which peers share
        parser.error(f"--seed must be a whole number from 0 to 2^32 - 1, not {args.seed}")
    check_is_png(parser, "--out", args.out)
    args.models = names_of(parser, "--models", args.models, ROUNDS, "peer")
    return args


def parse_peer(text: str) -> tuple[str, str]:
    """Return a peer that is named before a `=`, and what follows it."""
    name, _, rest = text.partition("=")
    if name not in ROUNDS:
        raise argparse.ArgumentTypeError(f"there is no peer {name!r}; choose of {', '.join(ROUNDS)}")
    return name, rest


def parse_rounds(text: str) -> tuple[str, tuple[int, ...]]:
    """Read a peer's numbers of rounds, such as svdpp=5,20."""
    name, numbers = parse_peer(text)
    if not all(number.isascii() and number.isdigit() and int(number) for number in numbers.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} must be a peer and whole numbers above 0, such as svdpp=5,20")
    return name, tuple(sorted({int(number) for number in numbers.split(",")}))


def parse_settings(text: str) -> tuple[str, dict[str, int | float]]:
    """Read a peer's settings, such as als=k:160,l2:0.06, whose names are those of its grid."""
    name, pairs = parse_peer(text)
    settings: dict[str, int | float] = {}
    for key, _, value in (pair.partition(":") for pair in pairs.split(",")):
        if key not in PEERS[name].grid or key == ROUNDS[name][0]:
            raise argparse.ArgumentTypeError(f"{name} has no setting {key!r}; --rounds says how many rounds")
        try:
            settings[key] = int(value) if value.isdigit() else float(value)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{value!r} is no number") from None
    return name, settings


def draw_curves(args: argparse.Namespace) -> None:
    """Fit and measure everything; print the points, draw the picture, print the line of JSON."""
    torch.set_num_threads(args.num_threads)
    peers = choose_models(args.models, tuple(ROUNDS), PEERS, PACKAGES)
    data = check(args.data_dir)
    check_folder_of("--out", args.out)
    rounds = {name: numbers for name, (_, numbers) in ROUNDS.items()} | dict(args.rounds)
    curves, chosen = measure_towers(args.data_dir, data, args.seed, args.num_threads, args.refit)
    settings = dict(args.settings)
    fits = [(name, number) for name in peers for number in rounds[name]]
    with tqdm(fits, unit=" fits", disable=None) as bar:
        for name, number in bar:
            bar.set_description(f"{name}, {number} rounds")
            fitted = PEERS[name].fit(data, args.seed, args.num_threads,
                                     **settings.get(name, {}) | {ROUNDS[name][0]: number})
            point = {"rounds": number, "seconds": fitted.fit_s, "rmse": test_errors(fitted, data).rmse}
            curves.setdefault(name, []).append(point)
            bar.write(f"{name}, {number} rounds: RMSE {point['rmse']:.4f}, {fitted.fit_s:.1f} s", file=sys.stderr)
    bias = test_errors(fit_bias(data, args.seed, args.num_threads), data).rmse
    protocol = (f"{args.data_dir.resolve().name}, split {data.meta['split']['method']}, {len(data.test):,} test "
                f"ratings, seed {args.seed}, {args.num_threads} thread(s){', processor time' if args.cpu_time else ''}")
    print(protocol)
    print(f"{'':<24}{'ROUNDS':>8}{'SECONDS':>10}{'RMSE':>9}{'TOWERS AS GOOD AFTER':>23}")
    print(f"{PEERS['bias'].title:<24}{'':>18}{bias:>9.4f}")
    for name, points in curves.items():
        for point in points:
            row = f"{TITLES[name]:<24}{point['rounds']:>8}{point['seconds']:>10.1f}{point['rmse']:>9.4f}"
            if name in ROUNDS:
                point["towers_as_good_s"] = seconds = seconds_until(curves, point["rmse"])
                row += "never".rjust(23) if seconds is None else (f"{seconds:>10.1f} s, "
                                                                  f"{seconds / point['seconds']:>5.2f} times")
            print(row + (" *" if point is chosen else ""))
    plot(args.out, curves, bias, chosen, protocol)
    print(f"see {args.out}")
    print(json.dumps({"curves": curves, "bias": bias, "chosen": chosen, "settings": settings,
                      "data_dir": str(args.data_dir), "seed": args.seed, "num_threads": args.num_threads,
                      "cpu_time": args.cpu_time}))


def measure_towers(data_dir: Path, known: DataSet, seed: int, num_threads: int,
                   refit: bool | None) -> tuple[dict[str, list[dict]], dict]:
    """Train the towers as main.py does; return the curves of the first fit and, if there is one, the second, a point
    per epoch, and the point of the model that main.py keeps.

    Args:
        known: the data set with all that is known before the test as its training part.
        refit: the flag of main.py.
    """
    flags = ["--data_dir", str(data_dir), "--seed", str(seed), "--num_threads", str(num_threads), "--device", "cpu"]
    args = train_command.parse_args(flags)

    def points_of(trainer: Trainer, name: str, seconds: float = 0.0) -> Iterator[dict]:
        for metrics in trainer.epochs():
            seconds += metrics.seconds
            if trainer.model.item_based is not None:
                fold_in_movies(trainer.model, known)
            rmse = predict_errors(trainer.model, known.train, known.test, known.meta["stars_step"]).rmse
            print(f"{name}, epoch {metrics.epoch}: RMSE {rmse:.4f}, {seconds:.1f} s", file=sys.stderr)
            yield {"rounds": metrics.epoch, "seconds": seconds, "rmse": rmse}

    data = load_dataset(data_dir)
    trainer = train_command.build_trainer(args, data, torch.device("cpu"), ALONE)
    points, chosen = [], {}
    for point in points_of(trainer, "two_tower"):
        points.append(point)
        if trainer.best_epoch == point["rounds"]:
            chosen = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    best = trainer.best_epoch
    curves = {"two_tower": points}
    if not train_command.wants_refit(refit, data.meta["split"]):
        return curves, points[best - 1]
    args.embedding_dim = trainer.model.config.embedding_dim  # of the first fit, as in main.py
    trainer = train_command.build_trainer(args, load_dataset(data_dir, with_validation=True), torch.device("cpu"),
                                          ALONE)
    trainer.model.load_chosen(chosen)
    curves["second_fit"] = list(itertools.islice(points_of(trainer, "second fit", points[-1]["seconds"]), best))
    return curves, curves["second_fit"][-1]


def seconds_until(curves: dict[str, list[dict]], rmse: float) -> float | None:
    """Return the seconds after which the towers' curves first are at or below an RMSE; None if they never are."""
    return min((point["seconds"] for name in TOWERS for point in curves.get(name, []) if point["rmse"] <= rmse),
               default=None)


def plot(path: Path, curves: dict[str, list[dict]], bias: float, chosen: dict, protocol: str) -> None:
    """Draw the curves, 900 pixels wide, with the name and the last RMSE at the end of each, the towers' the chosen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5.4), layout="constrained")
    for name, points in curves.items():
        colour, marker = STYLES[name]
        axes.plot([point["seconds"] for point in points], [point["rmse"] for point in points], marker=marker, ms=5,
                  color=colour, lw=2.5 if name in TOWERS else 1.5, zorder=3 if name in TOWERS else 2)
    axes.plot(chosen["seconds"], chosen["rmse"], "*", ms=16, color=STYLES["two_tower"][0], mec="white", zorder=4)
    axes.axhline(bias, ls="--", lw=1, color="0.4")
    lowest = min(point["rmse"] for points in curves.values() for point in points)
    highest = max(bias, *(points[-1]["rmse"] for points in curves.values()))
    height = highest - lowest or 1.0
    axes.set(xscale="log", ylim=(lowest - 0.1 * height, highest + 0.3 * height),
             xlabel="seconds of fitting (logarithmic)", ylabel="RMSE on the test part (stars)",
             title=f"RMSE on the TEST part by seconds of fitting; nothing is chosen by it\n{protocol}")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    peers = {name: points for name, points in curves.items() if name in ROUNDS}
    label_ends(axes, {"two_tower": [chosen]} | peers, bias)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def label_ends(axes: object, curves: dict[str, list[dict]], bias: float) -> None:
    """Write name and last RMSE of each curve to the right of the axes, in lines of their own, and lead to its end."""
    low, high = axes.get_ylim()
    ends = [(bias, None, f"{PEERS['bias'].title} {bias:.4f}", "0.4")]
    for name, points in curves.items():
        last, text = points[-1], TITLES[name]
        if name in ROUNDS and last["rounds"] != ROUNDS[name][1][-1]:
            text += f", {last['rounds']} rounds"
        ends.append((last["rmse"], last["seconds"], f"{text} {last['rmse']:.4f}", STYLES[name][0]))
    places = spread([(rmse - low) / (high - low) for rmse, *_ in ends], LABEL_GAP)
    for (rmse, seconds, text, colour), place in zip(ends, places, strict=True):
        if seconds is not None:
            axes.annotate("", (seconds, rmse), (1.015, place), textcoords="axes fraction", annotation_clip=False,
                          arrowprops={"arrowstyle": "-", "ls": ":", "color": colour, "shrinkA": 0, "shrinkB": 4})
        axes.text(1.02, place, text, color=colour, va="center", transform=axes.transAxes, fontsize=10,
                  fontweight="bold" if text.startswith(TITLES["two_tower"]) else "normal")


def spread(places: list[float], gap: float) -> list[float]:
    """Return places on a line moved upwards, where need be, until no two are closer than a gap; the order stays."""
    moved, last = list(places), -math.inf
    for index in sorted(range(len(places)), key=places.__getitem__):
        last = moved[index] = max(places[index], last + gap)
    return moved


if __name__ == "__main__":
    sys.exit(main())
