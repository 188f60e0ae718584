"""Draw the RMSE on the test part against seconds of fitting, for the towers and for the peers beside them.

    python benchmarks/learning_curve.py --data_dir data/processed --out benchmarks/learning_curve.png
    python benchmarks/learning_curve.py --data_dir data/ml1m --rounds svdpp=5,20 --cpu_time

    two towers   main.py --no-refit, measured after every epoch; only the training of the epochs is counted,
                 not validation or this measurement; the star is the epoch that validation chooses
    the peers    as compare_accuracy.py has them, each point a fit of its own from the start, with so many rounds:
                 epochs of SVD and SVD++, iterations of ALS and LIBMF, kept samples of myFM; see ROUNDS and --rounds

All run one after the other with --num_threads threads. Peers are fitted on training and validation ratings, the towers
on training ratings; all know both when they are asked. The picture is of the test part and chooses nothing: settings
and the number of epochs come from validation. Early points far above the bias model lie outside the picture.

Prints a row per point; the last line is JSON with the same, and time_to_svdpp: seconds until the towers' curve first is
at or below the RMSE of SVD++ with its full rounds, over the seconds of that fit; null where either is missing. Needs
requirements-bench.txt.
"""

import argparse
import json
import math
import sys
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

ROUNDS = {  # the argument of the peer's fit, and its values, the last one being its full fit
    "svd": ("n_epochs", (1, 2, 5, 10, 20)),
    "svdpp": ("n_epochs", (1, 2, 5, 10, 20)),
    "als": ("niter", (1, 2, 3, 5, 10)),
    "libmf": ("nr_iters", (5, 10, 25, 50, 100)),
    "myfm": ("num_samples", (10, 30, 100, 300)),
}
TITLES = {name: PEERS[name].title for name in ROUNDS} | {"two_tower": "two towers"}
STYLES = {  # colours of Okabe and Ito (2008), which the colour-blind tell apart, and markers for print
    "two_tower": ("#0072B2", "o"), "svd": ("#E69F00", "s"), "svdpp": ("#D55E00", "D"), "als": ("#009E73", "^"),
    "libmf": ("#56B4E9", "v"), "myfm": ("#CC79A7", "P"),
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
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of all chance (default: %(default)s)")
    add_cpu_time(parser)
    args = parser.parse_args(argv)
    check_cpu_time(parser, args)
    if not 0 <= args.seed < 2**32:  # NumPy's range, which peers share
        parser.error(f"--seed must be a whole number from 0 to 2^32 - 1, not {args.seed}")
    check_is_png(parser, "--out", args.out)
    args.models = names_of(parser, "--models", args.models, ROUNDS, "peer")
    return args


def parse_rounds(text: str) -> tuple[str, tuple[int, ...]]:
    """Read a peer's numbers of rounds, such as svdpp=5,20."""
    name, _, numbers = text.partition("=")
    if name not in ROUNDS:
        raise argparse.ArgumentTypeError(f"there is no peer {name!r}; choose of {', '.join(ROUNDS)}")
    if not all(number.isascii() and number.isdigit() and int(number) for number in numbers.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} must be a peer and whole numbers above 0, such as svdpp=5,20")
    return name, tuple(sorted({int(number) for number in numbers.split(",")}))


def draw_curves(args: argparse.Namespace) -> None:
    """Fit and measure everything; print the points, draw the picture, print the line of JSON."""
    torch.set_num_threads(args.num_threads)
    peers = choose_models(args.models, tuple(ROUNDS), PEERS, PACKAGES)
    data = check(args.data_dir)
    check_folder_of("--out", args.out)
    rounds = {name: numbers for name, (_, numbers) in ROUNDS.items()} | dict(args.rounds)
    points, chosen = measure_towers(args.data_dir, data, args.seed, args.num_threads)
    curves = {"two_tower": points}
    fits = [(name, number) for name in peers for number in rounds[name]]
    with tqdm(fits, unit=" fits", disable=None) as bar:
        for name, number in bar:
            bar.set_description(f"{name}, {number} rounds")
            fitted = PEERS[name].fit(data, args.seed, args.num_threads, **{ROUNDS[name][0]: number})
            point = {"rounds": number, "seconds": fitted.fit_s, "rmse": test_errors(fitted, data).rmse}
            curves.setdefault(name, []).append(point)
            bar.write(f"{name}, {number} rounds: RMSE {point['rmse']:.4f}, {fitted.fit_s:.1f} s", file=sys.stderr)
    bias = test_errors(fit_bias(data, args.seed, args.num_threads), data).rmse
    protocol = (f"{args.data_dir.resolve().name}, split {data.meta['split']['method']}, {len(data.test):,} test "
                f"ratings, seed {args.seed}, {args.num_threads} thread(s){', processor time' if args.cpu_time else ''}")
    print(protocol)
    print(f"{'':<24}{'ROUNDS':>8}{'SECONDS':>10}{'RMSE':>9}")
    print(f"{PEERS['bias'].title:<24}{'':>18}{bias:>9.4f}")
    for name, points in curves.items():
        for point in points:
            print(f"{TITLES[name]:<24}{point['rounds']:>8}{point['seconds']:>10.1f}{point['rmse']:>9.4f}"
                  + (" *" if name == "two_tower" and point["rounds"] == chosen else ""))
    plot(args.out, curves, bias, chosen, protocol)
    print(f"see {args.out}")
    print(json.dumps({"curves": curves, "bias": bias, "chosen_epoch": chosen, "time_to_svdpp": time_to_svdpp(curves),
                      "data_dir": str(args.data_dir), "seed": args.seed, "num_threads": args.num_threads,
                      "cpu_time": args.cpu_time}))


def measure_towers(data_dir: Path, known: DataSet, seed: int, num_threads: int) -> tuple[list[dict], int]:
    """Train the towers as main.py does; return a point per epoch, and the epoch that validation chooses.

    Args:
        known: the data set with all that is known before the test as its training part.
    """
    flags = ["--data_dir", str(data_dir), "--seed", str(seed), "--num_threads", str(num_threads), "--device", "cpu"]
    trainer = train_command.build_trainer(train_command.parse_args(flags), load_dataset(data_dir), torch.device("cpu"),
                                          ALONE)
    points, seconds = [], 0.0
    for metrics in trainer.epochs():
        seconds += metrics.seconds
        if trainer.model.item_based is not None:
            fold_in_movies(trainer.model, known)
        rmse = predict_errors(trainer.model, known.train, known.test, known.meta["stars_step"]).rmse
        points.append({"rounds": metrics.epoch, "seconds": seconds, "rmse": rmse})
        print(f"two_tower, epoch {metrics.epoch}: RMSE {rmse:.4f}, {seconds:.1f} s", file=sys.stderr)
    return points, trainer.best_epoch


def time_to_svdpp(curves: dict[str, list[dict]]) -> float | None:
    """Return the towers' seconds to the RMSE of the last fit of SVD++, over the seconds of that fit."""
    if "svdpp" not in curves:
        return None
    goal = curves["svdpp"][-1]
    reached = [point["seconds"] for point in curves["two_tower"] if point["rmse"] <= goal["rmse"]]
    return reached[0] / goal["seconds"] if reached else None


def plot(path: Path, curves: dict[str, list[dict]], bias: float, chosen: int, protocol: str) -> None:
    """Draw the curves, 900 pixels wide, with the name and the last RMSE at the end of each, the towers' the chosen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5.4), layout="constrained")
    for name, points in curves.items():
        colour, marker = STYLES[name]
        axes.plot([point["seconds"] for point in points], [point["rmse"] for point in points], marker=marker, ms=5,
                  color=colour, lw=2.5 if name == "two_tower" else 1.5, zorder=3 if name == "two_tower" else 2)
    best = curves["two_tower"][chosen - 1]
    axes.plot(best["seconds"], best["rmse"], "*", ms=16, color=STYLES["two_tower"][0], mec="white", zorder=4)
    axes.axhline(bias, ls="--", lw=1, color="0.4")
    lowest = min(point["rmse"] for points in curves.values() for point in points)
    highest = max(bias, *(points[-1]["rmse"] for points in curves.values()))
    height = highest - lowest or 1.0
    axes.set(xscale="log", ylim=(lowest - 0.1 * height, highest + 0.3 * height),
             xlabel="seconds of fitting (logarithmic)", ylabel="RMSE on the test part (stars)",
             title=f"RMSE on the TEST part by seconds of fitting; nothing is chosen by it\n{protocol}")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    label_ends(axes, curves | {"two_tower": [best]}, bias)
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
