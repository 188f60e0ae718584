"""Hold what the towers say of how sure they are against what people gave.

    python benchmarks/calibration.py --data_dir data/processed --picture docs/pictures/calibration.png
    python benchmarks/calibration.py --data_dir data/processed --run_dir runs/default --sizes ""

A prediction is a distribution over the stars. Rows of the table:
    two towers        the test ratings of a processed data set (preprocessing/), by main.py with default flags, or by
                      the run of --run_dir
    new, k ratings    people who were left out of training whole, each giving k ratings at random, k being each of
                      --sizes; see compare_new_users.py
    myFM              its ordered probit, a Bayesian factorisation machine that has a distribution too (rank --rank, 300
                      samples after 20), on the same test ratings
    shares of stars   among the training ratings, whoever rates what: what knowing nothing reaches
and its columns
    50, 80, 95 %      how many ratings lie in the intervals that should hold so many percent of them; a star's
                      probability lies evenly over its step of the scale, so that every percentage can be met
    log-likelihood    the mean of a rating, by the natural logarithm; higher is better

The picture: how often there were at least so many stars, by the probability that was given to it, and how many ratings
lie in intervals of every percentage. The last line is JSON. The peer needs requirements-bench.txt.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.compare_accuracy import check_counts, check_folder_of, check_is_png, exit_code, train_towers
from benchmarks.left_out import Person, history_of, people_of, set_apart
from benchmarks.peers import columns_of, importable
from models.checkpoint import load_model
from models.stars_link import StarsLink, coverage
from preprocessing.dataset import ratings_frame
from recommending.recommender import Recommender
from training.batches import DataSet, load_dataset
from training.link import scores_and_features
from training.report import COVERAGES, how_sure

MOST_GIVEN = 50  # of a new person; they are asked for what comes after
BINS = 10  # of probabilities, with equally many ratings each
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")  # Okabe and Ito (2008)


@dataclass
class Said:
    """What is said of T ratings, and what they were."""

    probabilities: torch.Tensor  # float64 (T, K + 1), of the stars from the lowest
    star: torch.Tensor  # int64 (T,), 0 for the lowest


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
    add("--run_dir", type=Path, metavar="DIR", help="a run of that data set (default: one is trained)")
    add("--sizes", type=typed_sizes, default=(1, 3, 10), metavar="K,K",
        help=f'how many ratings new people give, at most {MOST_GIVEN}; "": ask none (default: 1,3,10)')
    add("--users", type=int, default=400, metavar="N", help="new people, at most a tenth (default: %(default)s)")
    add("--rank", type=int, default=32, metavar="N", help="of the peer (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="(default: 0)")
    add("--num_threads", type=int, default=1, metavar="N", help="CPU threads (default: 1)")
    add("--picture", type=Path, metavar="FILE.png", help="draw what the table says")
    args = parser.parse_args(argv)
    check_counts(parser, args, ("users", "rank", "num_threads"))
    check_is_png(parser, "--picture", args.picture)
    return args


def typed_sizes(text: str) -> tuple[int, ...]:
    """Read the value of --sizes."""
    numbers = text.split(",") if text else []
    if not all(number.isascii() and number.isdigit() and int(number) <= MOST_GIVEN for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} must be whole numbers up to {MOST_GIVEN}, such as 1,3,10")
    return tuple(sorted({int(number) for number in numbers}))


def compare(args: argparse.Namespace) -> None:
    """Run everything; print the table and the line of JSON."""
    torch.set_num_threads(args.num_threads)
    check_folder_of("--picture", args.picture)
    rows: dict[str, Said] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = load_dataset(args.data_dir, with_validation=True)
        run_dir = args.run_dir
        if run_dir is None:
            run_dir = Path(folder) / "run"
            train_towers(args.data_dir, run_dir, args.seed, args.num_threads, [])
        rows["two towers"] = of_towers(run_dir, data)
        if args.sizes:
            rows |= of_new_people(args, Path(folder))
        if importable("myfm"):
            rows["myFM, ordered probit"] = of_myfm(data, args)
        rows["shares of stars"] = of_shares(data)
    table = {name: measure(said) for name, said in rows.items()}
    print(f"{args.data_dir.resolve().name}\n{'':<22}{'ratings':>9}"
          + "".join(f"{f'{percent} %':>8}" for percent in COVERAGES) + f"{'log-likelihood':>16}")
    for name, row in table.items():
        print(f"{name:<22}{row['ratings']:>9,}" + "".join(f"{100 * row[f'within_{percent}']:>8.1f}"
                                                          for percent in COVERAGES)
              + f"{row['log_likelihood']:>16.4f}")
    if args.picture is not None:
        plot(args.picture, rows, data)
        print(f"see {args.picture}")
    print(json.dumps({"results": table, "data_dir": str(args.data_dir), "seed": args.seed, "users": args.users,
                      "rank": args.rank}))


def of_towers(run_dir: Path, data: DataSet) -> Said:
    """Return what a run says of the test ratings."""
    model, _ = load_model(run_dir / "best.pt", data.meta["fingerprint"])
    users = data.test.offset.diff().nonzero().squeeze(1)
    score, stars, features = scores_and_features(model, data.train, data.test, users, data.meta["stars_step"])
    return Said(model.link.probabilities(score, features).detach().double(), model.link.position_of(stars))


def of_new_people(args: argparse.Namespace, folder: Path) -> dict[str, Said]:
    """Train without some people, and return what is said of their ratings after they gave some, by how many."""
    ratings = ratings_frame(args.data_dir, columns=["user_id", "movie_id", "stars", "date"])
    people_ids, _ = set_apart(args.data_dir, ratings, args.users, MOST_GIVEN, args.seed, folder / "rest")
    train_towers(folder / "rest", folder / "run of the rest", args.seed, args.num_threads, [])
    recommender = Recommender.load(folder / "run of the rest", folder / "rest")
    data = load_dataset(folder / "rest")
    people = people_of(ratings, people_ids, data, MOST_GIVEN, "random", args.seed)
    return {f"new, {size} rating{'s' * (size != 1)}": Said(*map(torch.cat, zip(*(
        _answers(recommender, person, size) for person in tqdm(people, desc=f"new, {size}", disable=None)),
        strict=True))) for size in args.sizes}


def _answers(recommender: Recommender, person: Person, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the fields of `Said` of a person's questions."""
    asked = recommender.movies.movie_id[person.asked_idx].tolist()
    rows = recommender.predictions(history_of(recommender, person, size), asked)
    said = {row.movie_id: list((row.probabilities or {}).values()) for row in rows}
    position = recommender.model.link.position_of(torch.tensor(person.asked))
    return torch.tensor([said[movie] for movie in asked]).double(), position


def of_myfm(data: DataSet, args: argparse.Namespace) -> Said:
    """Fit the peer and return what it says of the test ratings."""
    from myfm import MyFMOrderedProbit, RelationBlock
    from scipy import sparse

    user_idx, movie_idx, _ = columns_of(data)
    user_rows, movie_rows = (sparse.identity(size, format="csr") for size in (data.num_users, data.num_movies))
    link = _link_of(data)
    train_star, test_star = (link.position_of(part.stars * data.meta["stars_step"]) for part in (data.train, data.test))
    model = MyFMOrderedProbit(rank=args.rank, random_seed=args.seed)
    with contextlib.redirect_stderr(io.StringIO()):  # it draws a bar of its own
        model.fit(None, train_star.numpy(), group_shapes=[data.num_users, data.num_movies], n_iter=320,
                  n_kept_samples=300, X_rel=[RelationBlock(user_idx, user_rows), RelationBlock(movie_idx, movie_rows)])
        found = model.predict_proba(None, [RelationBlock(data.test.user_idx().numpy(), user_rows),
                                           RelationBlock(data.test.movie_idx.long().numpy(), movie_rows)])
    return Said(torch.from_numpy(np.asarray(found)).double(), test_star)


def of_shares(data: DataSet) -> Said:
    """Return the shares of the stars among the training ratings, for every test rating."""
    link = _link_of(data)
    train_star, test_star = (link.position_of(part.stars * data.meta["stars_step"]) for part in (data.train, data.test))
    shares = torch.bincount(train_star, minlength=link.num_above + 1).double() / len(train_star)
    return Said(shares.expand(len(test_star), -1), test_star)


def _link_of(data: DataSet) -> StarsLink:
    """Return a link of the data set's scale, for its positions of stars."""
    return StarsLink(*data.meta["stars_range"], data.meta["stars_step"])


def measure(said: Said) -> dict[str, float]:
    """Return a row of the table."""
    means = {name: round(float(values.mean()), 5) for name, values in how_sure(said.probabilities, said.star).items()}
    return {"ratings": len(said.star), "log_likelihood": means["log_likelihood"],
            **{f"within_{percent}": means[f"coverage_{percent}"] for percent in COVERAGES}}


def reliability(said: Said, star: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean probability of at least a star, and how often it was, of BINS groups of ratings by the first."""
    chance = said.probabilities[:, star:].sum(1)
    order = chance.argsort()
    groups = [group for group in order.tensor_split(BINS) if len(group)]
    was = (said.star >= star).double()
    return (torch.stack([chance[group].mean() for group in groups]),
            torch.stack([was[group].mean() for group in groups]))


def plot(path: Path, rows: dict[str, Said], data: DataSet) -> None:
    """Draw both pictures, 1,100 pixels wide."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 5.4), layout="constrained")
    link, ours = _link_of(data), rows["two towers"]
    stars = range(1, link.num_above + 1)
    for position, star in enumerate(stars if link.num_above <= 4 else stars[::2]):
        colour = COLOURS[position % len(COLOURS)]
        left.plot(*reliability(ours, star), "o-", ms=5, color=colour,
                  label=f"at least {link.low + star * link.step:g} stars")
    left.set(xlabel="probability that the towers gave", ylabel="how often it was so", title="Test ratings")
    fractions = torch.arange(0.05, 1.0, 0.05)
    for position, (name, said) in enumerate(rows.items()):
        inside = torch.stack([coverage(said.probabilities, said.star, float(fraction)).mean()
                              for fraction in fractions])
        right.plot(100 * fractions, 100 * (inside - fractions), color=COLOURS[position % len(COLOURS)], label=name,
                   lw=2.5 if said is ours else 1.5)
    largest = max(5.0, *(abs(number) for number in right.get_ylim()))
    right.set(xlabel="percent that an interval should hold", ylabel="ratings inside, percent more", title="Intervals",
              ylim=(-largest, largest))
    left.plot([0, 1], [0, 1], "--", color="0.5", lw=1, zorder=0)
    left.set_aspect("equal")
    right.axhline(0, ls="--", color="0.5", lw=1, zorder=0)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
