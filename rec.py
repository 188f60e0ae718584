"""Recommend movies: score all movies that a person has not seen and print the best.

    python rec.py                                       for a user of the data set, chosen by its seed
    python rec.py --user_id 1488844 --top_n 20 --explain
    python rec.py --rate "571:5,1905:4,30:1"            for somebody new

Reads best.pt of --run_dir (made by main.py) and the data set it was trained on.
"""

import argparse
import dataclasses
import json
import sys
import unicodedata
from pathlib import Path

from models.recommender import History, Recommendation, Recommender
from preprocessing.dataset import DataError

TITLE_WIDTH = 46


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code: 0 done, 1 a sentence says why not, 130 interrupted."""
    args = parse_args(argv)
    try:
        run(args)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or args.run_dir}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the flags."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--user_id", type=int, metavar="ID", help="user of the data set (default: one chosen by its seed)")
    who.add_argument("--rate", type=parse_rates, metavar='"ID:STARS,..."', help="ratings of somebody new, by movie_id")
    parser.add_argument("--top_n", type=int, default=10, metavar="N", help="length of the list (default: 10)")
    parser.add_argument("--explain", action="store_true", help="show which rated movies raised each score most")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--all_users", action="store_true", help="write the lists of all users to --out")
    parser.add_argument("--out", type=Path, metavar="FILE", help="parquet file that --all_users writes")
    parser.add_argument("--export_vectors", type=Path, metavar="DIR", help="write all user and movie vectors as .npy")
    parser.add_argument("--run_dir", type=Path, default=Path("runs/default"), metavar="DIR",
                        help="folder of the run (default: %(default)s)")
    parser.add_argument("--data_dir", type=Path, default=Path("data/processed"), metavar="DIR",
                        help="processed data set (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.top_n < 1:
        parser.error(f"--top_n must be at least 1, not {args.top_n}")
    if args.all_users != (args.out is not None):
        parser.error("--all_users and --out FILE.parquet go together")
    return args


def parse_rates(text: str) -> dict[int, float]:
    """Read "MOVIE_ID:STARS,..." into {movie_id: stars}."""
    ratings: dict[int, float] = {}
    for part in text.split(","):
        movie_id, _, stars = part.partition(":")
        try:
            key, value = int(movie_id), float(stars)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{part!r} is not MOVIE_ID:STARS") from None
        if key in ratings:
            raise argparse.ArgumentTypeError(f"movie_id {key} is rated twice")
        ratings[key] = value
    return ratings


def run(args: argparse.Namespace) -> None:
    """Load the run, make the list, print it."""
    recommender = Recommender.load(args.run_dir, args.data_dir)
    if args.all_users or args.export_vectors is not None:
        run_batch(recommender, args)
        return
    if args.rate is not None:
        history = recommender.history_from(args.rate)
    else:
        history = recommender.history_of(recommender.any_user_id() if args.user_id is None else args.user_id)
    recommendations = recommender.recommend(history, args.top_n)
    if args.explain:
        recommender.explain(history, recommendations)
    if args.json:
        print(as_json(history, recommendations))
    else:
        print(as_table(history, recommendations, chosen=args.user_id is None))


def run_batch(recommender: Recommender, args: argparse.Namespace) -> None:
    """Write everybody's lists or vectors."""
    from models import batch  # not needed for a single list

    if args.all_users:
        num_users = batch.recommend_all(recommender, args.out, args.top_n, args.run_dir / "best.pt")
        print(f"wrote the lists of {num_users:,} users to {args.out}")
    if args.export_vectors is not None:
        num_users, num_movies = batch.export_vectors(recommender, args.export_vectors)
        print(f"wrote the vectors of {num_users:,} users and {num_movies:,} movies to {args.export_vectors}")


def as_json(history: History, recommendations: list[Recommendation]) -> str:
    """Return one object: user_id (null for somebody new) and recommendations."""
    rows = [dataclasses.asdict(recommendation) for recommendation in recommendations]
    for row in rows:
        row["stars"] = round(row["stars"], 4)
        if row["because"] is None:
            del row["because"]
    return json.dumps({"user_id": history.user_id, "recommendations": rows}, allow_nan=False)


def as_table(history: History, recommendations: list[Recommendation], chosen: bool) -> str:
    """Return the list as text of at most 80 columns."""
    who = "somebody new" if history.user_id is None else f"user {history.user_id}"
    hint = " (chosen by the seed; see --user_id)" if chosen and history.user_id is not None else ""
    lines = [f"{who}, {len(history.movie_idx):,} movies rated{hint}"]
    if not recommendations:
        return "\n".join([*lines, "nothing to recommend: every movie with training ratings is rated already"])
    lines.append(f"{'rank':>4}  {fit('title', TITLE_WIDTH)}  year  stars  {'ratings':>10}")
    for row in recommendations:
        lines.append(f"{row.rank:>4}  {fit(row.title, TITLE_WIDTH)}  {row.year or '-':>4}  {row.stars:5.2f}  "
                     f"{row.num_ratings:>10,}")
        lines += [f"      {reason.effect:+.2f} for {reason.stars:g} stars given to {fit(reason.title, 40).rstrip()}"
                  for reason in row.because or []]
    return "\n".join(lines)


def fit(text: str, width: int) -> str:
    """Cut or pad a title to a width in terminal columns; what a terminal might obey is shown as '?'."""
    shown, used = "", 0
    for character in text:
        category = unicodedata.category(character)
        if category.startswith(("C", "Z")) and character != " ":
            character = "?"
        columns = 0 if category.startswith("M") else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if used + columns > width:
            while used > width - 3:
                last = shown[-1]
                used -= 0 if unicodedata.combining(last) else 2 if unicodedata.east_asian_width(last) in "WF" else 1
                shown = shown[:-1]
            return shown + "..." + " " * (width - used - 3)
        shown, used = shown + character, used + columns
    return shown + " " * (width - used)


if __name__ == "__main__":
    sys.exit(main())
