"""Recommend movies: score all that a person has not seen and print the best.

examples:
  python rec.py --user_id 1488844 --year_from 1990 --explain
  python rec.py --rate "The Matrix:5,Heat (1995):4,30:1"      for somebody new
  python rec.py --similar_to "The Matrix" --min_ratings 1000

Without flags it recommends for a user of the data set, chosen by its seed.
Reads best.pt of --run_dir (made by main.py) and the data set it was trained on.
"""

import argparse
import atexit
import contextlib
import datetime
import gc
import math
import os
import sys
import textwrap
from pathlib import Path

import recommending  # noqa: F401 - it says what to do where packages are missing, before they are imported

# isort: split
from preprocessing.dataset import Id, exit_code, printable
from recommending.formatting import WIDTH, as_json, as_json_object, as_table, as_user_table, count, fit, shown_id
from recommending.ratings_input import OwnRatings, find_rated, parse_ratings, read_ratings
from recommending.recommender import NUM_REASONS, Filters, History, Recommendation, Recommender

NUM_PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))  # that torchrun has started
EVERYBODY = ("--all_users", "--export_vectors")  # modes that take no other flag, and that processes share out
LIST_FORMATS = (".parquet", ".csv", "")
ABOUT_MOVIES = ("--similar_to", "--map", "--popular", "--search")  # and not about a person
TOP_N = 10
MAP_FORMATS = (".png", ".pdf", ".svg")
A_MAP_FORMAT = f"{', '.join(MAP_FORMATS[:-1])} or {MAP_FORMATS[-1]}"


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code: 0 done, 1 a sentence says why not, 130 Ctrl-C, 143 SIGTERM."""
    args = parse_args(argv)
    in_parts = args.all_users or args.export_vectors is not None
    return exit_code(lambda: work(args), "standard output",
                     (lambda: "the same command goes on from what is done") if in_parts else None)


def work(args: argparse.Namespace) -> None:
    """Print what is asked for, to the end, or until nobody reads it any more."""
    try:
        run(args)
        sys.stdout.flush()
    except OSError as error:
        if error.filename is None:
            with contextlib.suppress(OSError):  # what could not be written is not tried again at exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # whoever reads the list, `head` for one, has enough
            raise


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, usage="python rec.py [flags]", add_help=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28, width=WIDTH))
    add = parser.add_argument_group("flags").add_argument
    add("--user_id", metavar="ID", help="user of the data set (default: chosen by its seed)")
    add("--rate", type=typed_ratings, metavar='"MOVIE:STARS,..."',
        help="ratings by title or movie_id, alone or of --user_id too")
    add("--ratings_file", type=Path, metavar="FILE", help="the same from a table, such as Letterboxd's export")
    add("--fallback", choices=["popular"], help="what to list for an unknown --user_id")
    add("--predict", type=typed_movies, metavar='"MOVIE,..."',
        help="predict the stars of movies: titles or movie_ids")
    add("--ask", type=int, nargs="?", const=TOP_N, metavar="N",
        help="list the N movies to rate that would tell most")
    add("--similar_to", metavar="MOVIE", help="list the movies most like one: title or movie_id")
    add("--popular", action="store_true", help="list the movies with the most ratings")
    add("--search", metavar="TEXT", help="list the movies with TEXT in their title, most ratings first")
    add("--list_users", type=int, nargs="?", const=10, metavar="N", help="list the N users with the most ratings")
    add("--all_users", action="store_true", help="write everybody's list to --out")
    add("--out", type=Path, metavar="FILE", help="file that --all_users writes: .parquet or .csv")
    add("--export_vectors", type=Path, metavar="DIR", help="write all user and movie vectors as .npy")
    add("--map", type=Path, metavar="FILE", help=f"draw the movie vectors: map{A_MAP_FORMAT}")
    add("--serve", action="store_true", help="open the run as a page and an API")
    add("--port", type=int, metavar="PORT", help="of --serve (default: 8000; 0: any that is free)")
    add("--host", metavar="ADDRESS", help="of --serve (default: 127.0.0.1, this machine alone; with 0.0.0.0 anybody "
        "who reaches it can ask, without a password)")
    add("--rank_by", choices=["rating", "relevance"], help="highest stars first, with few ratings a "
        "little lower (default), or likeliest to be watched and liked next")
    add("--top_n", type=int, metavar="N", help="length of the list (default: 10)")
    add("--year_from", type=int, metavar="YEAR", help="only movies of this year or later")
    add("--year_to", type=int, metavar="YEAR", help="only movies of this year or earlier")
    add("--min_ratings", type=int, metavar="K", help="only movies with K training ratings (default: 1)")
    add("--title", default="", metavar="TEXT", help="only movies with TEXT in their title")
    add("--include_seen", action="store_true", help="list seen movies too, with the stars given")
    add("--date", type=typed_date, metavar="YYYY-MM-DD", help="as of when (default: the last day)")
    add("--as_of_training", action="store_true", help="leave test ratings aside: they may be listed")
    add("--explain", action="store_true", help="show which ratings raised each score most")
    add("--json", action="store_true", help="print one JSON object instead of a table")
    add("--run_dir", type=Path, default=Path("runs/default"), metavar="DIR", help="run (default: %(default)s)")
    add("--data_dir", type=Path, metavar="DIR", help="data set (default: that of the run)")
    add("-h", "--help", action="help", help="show this help and exit")
    args = parser.parse_args(argv)
    check_flags(parser, args)
    args.top_n = TOP_N if args.top_n is None else args.top_n
    return args


def check_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the program with a sentence where flags are wrong, or do not go together."""
    if args.top_n is not None and args.top_n < 1:
        parser.error(f"--top_n must be at least 1, not {args.top_n}")
    if args.min_ratings is not None and args.min_ratings < 0:
        parser.error(f"--min_ratings must be at least 0, not {args.min_ratings}")
    if args.year_from is not None and args.year_to is not None and args.year_from > args.year_to:
        parser.error(f"--year_from {args.year_from} lies after --year_to {args.year_to}: no movie could pass")
    if args.fallback and args.user_id is None:
        parser.error("--fallback is for an unknown user: name one with --user_id")
    if args.all_users != (args.out is not None):
        parser.error("--all_users and --out FILE go together")
    if args.out is not None and args.out.suffix.lower() not in LIST_FORMATS:
        parser.error(f"--out {args.out} must end in .parquet or .csv")
    if not args.serve and (wrong := _given({"--port": args.port, "--host": args.host})):
        parser.error(f"{wrong[0]} is about --serve: give both")
    if args.port is not None and not 0 <= args.port <= 65535:
        parser.error(f"--port must be between 0 and 65535, not {args.port}")
    if args.list_users is not None and args.list_users < 1:
        parser.error(f"--list_users must be at least 1, not {args.list_users}")
    if args.ask is not None and args.ask < 1:
        parser.error(f"--ask must be at least 1, not {args.ask}")
    if args.search is not None and not args.search.strip():
        parser.error("--search needs a text that titles have in them")
    modes = {"--serve": args.serve, "--all_users": args.all_users, "--export_vectors": args.export_vectors,
             "--list_users": args.list_users, "--similar_to": args.similar_to, "--map": args.map,
             "--popular": args.popular, "--search": args.search, "--predict": args.predict, "--ask": args.ask}
    of_person = {"--user_id": args.user_id, "--rate": args.rate, "--ratings_file": args.ratings_file,
                 "--rank_by": args.rank_by, "--explain": args.explain, "--include_seen": args.include_seen}
    narrowing = {"--date": args.date, "--year_from": args.year_from, "--year_to": args.year_to,
                 "--min_ratings": args.min_ratings, "--title": args.title or None}
    first, *others = [*_given(modes), ""]
    not_of_everybody = [*others[:-1], *_given(of_person), *_given(narrowing)]
    if NUM_PROCESSES > 1 and first not in EVERYBODY:
        parser.error(f"torchrun shares out {' or '.join(EVERYBODY)}; ask everything else of one process: python rec.py")
    if first in EVERYBODY and (wrong := [*not_of_everybody, *_given({"--json": args.json})]):
        parser.error(f"{first} is about everybody and all movies: it does not go with {wrong[0]}")
    lists = {"--top_n": args.top_n, "--rank_by": args.rank_by, "--include_seen": args.include_seen,
             "--fallback": args.fallback}
    if first == "--predict" and (wrong := [*others[:-1], *_given(lists), *_given(narrowing | {"--date": None})]):
        parser.error(f"--predict is about the movies that it names: it does not go with {wrong[0]}")
    if first == "--ask" and (wrong := _given(lists | {"--explain": args.explain})):
        parser.error(f"--ask lists N movies that are not rated yet: it does not go with {wrong[0]}")
    if first == "--serve" and (wrong := [*not_of_everybody, *_given({"--json": args.json})]):
        parser.error(f"--serve opens a page on which one asks: it does not go with {wrong[0]}")
    training = _given({"--as_of_training": args.as_of_training})
    if first == "--list_users" and (wrong := [*not_of_everybody, *training]):
        parser.error(f"--list_users asks about users and not about movies: it does not go with {wrong[0]}")
    if first in ABOUT_MOVIES and (wrong := [*others[:-1], *_given(of_person), *training]):
        parser.error(f"{first} asks about movies and not about a person: it does not go with {wrong[0]}")
    if training and args.user_id is None and (args.rate or args.ratings_file or args.ask):
        parser.error("--as_of_training is about the ratings of the data set: name a user with --user_id")
    if args.map is not None and args.map.suffix.lower() not in MAP_FORMATS:
        parser.error(f"--map {args.map} must end in {A_MAP_FORMAT}")
    if args.map is not None and not args.map.parent.is_dir():
        parser.error(f"--map {args.map}: there is no folder {args.map.parent}")


def _given(flags: dict[str, object]) -> list[str]:
    """Return the names of flags that are given."""
    return [name for name, value in flags.items() if value is not None and value is not False]


def typed_ratings(text: str) -> list[tuple[str, float]]:
    """Read the value of --rate."""
    try:
        return parse_ratings(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def typed_movies(text: str) -> str:
    """Read the value of --predict; which movies are meant, only the data set can tell."""
    if not all(map(str.strip, text.split(","))):
        raise argparse.ArgumentTypeError(f"{text[:60]!r} lacks a movie; write movies with commas between them, such as "
                                         '"Heat (1995),Alien"')
    return text


def typed_date(text: str) -> datetime.date:
    """Read the value of --date."""
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no date; write it as YYYY-MM-DD, such as 2005-12-10") from None


def run(args: argparse.Namespace) -> None:
    """Load the run, make what is asked for, print it."""
    recommender = Recommender.load(args.run_dir, args.data_dir, args.date, args.as_of_training)
    if args.user_id is not None:
        args.user_id = recommender.user_id_of(args.user_id)
    fewest = (0 if args.search is not None else 1) if args.min_ratings is None else args.min_ratings
    filters = Filters(args.year_from, args.year_to, fewest, args.title, args.include_seen)
    if args.serve:
        serve_page(args, recommender)
    elif args.all_users:
        write_all(args, recommender)
    elif args.export_vectors is not None:
        export(args, recommender)
    elif args.list_users is not None:
        list_users(args, recommender)
    elif args.map is not None:
        draw(args, recommender, filters)
    elif args.similar_to is not None:
        list_similar(args, recommender, filters)
    elif args.search is not None:
        list_found(args, recommender, filters)
    elif args.popular:
        list_popular(args, recommender, filters)
    elif args.predict is not None:
        list_predictions(args, recommender)
    elif args.ask is not None:
        list_asked(args, recommender, filters)
    else:
        list_for_person(args, recommender, filters)


def serve_page(args: argparse.Namespace, recommender: Recommender) -> None:
    """Answer as a page and an API until a signal comes."""
    from recommending.page.server import serve

    serve(recommender, args.host or "127.0.0.1", 8000 if args.port is None else args.port)


def list_users(args: argparse.Namespace, recommender: Recommender) -> None:
    """Print the users with the most ratings."""
    users = recommender.busiest_users(args.list_users)
    if args.json:
        print(as_json_object({"kind": "users", "users": [
            {"user_id": user_id, "num_ratings": number} for user_id, number in users]}))
        return
    print(f"{len(users):,} of {count(recommender.meta['num_users'], 'user')}, most ratings first")
    print(as_user_table(users, sys.stdout.encoding))


def list_found(args: argparse.Namespace, recommender: Recommender, filters: Filters) -> None:
    """Print the movies that a search finds."""
    say(recommender.date_remarks(filters))
    rows = recommender.search(args.search, filters)
    text = fit(args.search.strip(), 30, sys.stdout.encoding).rstrip()
    shown = f"{args.top_n:,} of " if len(rows) > args.top_n else ""
    heading = f'{shown}{count(len(rows), "movie")} with "{text}" in the title, most ratings first'
    if not rows:
        narrowed = " and passes the filters" if filters != Filters(min_ratings=0) else ""
        heading = f'no movie has "{text}" in its title{narrowed}{recommender.suggestion(args.search)}'
        say([heading] if args.json else [])
    show(args, recommender, rows[:args.top_n], "search", heading)


def list_popular(args: argparse.Namespace, recommender: Recommender, filters: Filters) -> None:
    """Print the movies with the most ratings."""
    say(recommender.date_remarks(filters))
    if recommender.as_of is not None:
        say(["the numbers of ratings are those of all days"])
    show(args, recommender, recommender.popular(args.top_n, filters), "popular",
         "popular movies, most ratings first; stars are their mean", args.user_id)


def list_similar(args: argparse.Namespace, recommender: Recommender, filters: Filters) -> None:
    """Print the movies nearest to one."""
    movie_id = recommender.movie_id_of(args.similar_to)
    rows = recommender.similar(movie_id, args.top_n, filters)
    movie = recommender.movie_idx_of(movie_id)
    if not recommender.movies.num_train_ratings[movie]:
        say([f"movie {movie_id} has no training ratings: only its features say what it is like"])
    say(recommender.date_remarks(filters))
    title = fit(recommender.movies.title[movie], 50, sys.stdout.encoding).rstrip()
    shown = shown_id(movie_id, 40, sys.stdout.encoding)
    show(args, recommender, rows, "similar", f"like movie {shown}, {title}", movie_id=movie_id)


def list_for_person(args: argparse.Namespace, recommender: Recommender, filters: Filters) -> None:
    """Print the list of a user, of somebody new, or the popular movies for somebody unknown."""
    history = history_of(args, recommender)
    if history is None:
        list_popular(args, recommender, filters)
        return
    say(recommender.date_remarks(filters, history))
    rank_by = args.rank_by or "rating"
    rows = recommender.recommend(history, args.top_n, filters, rank_by, NUM_REASONS * args.explain)
    order = "; most relevant first" if rank_by == "relevance" else ""
    show(args, recommender, rows, "new" if history.user_id is None else "user",
         heading_of(args, history, order), history.user_id, rank_by)


def list_predictions(args: argparse.Namespace, recommender: Recommender) -> None:
    """Print how many stars a person would give the movies that --predict names."""
    movie_ids = recommender.movie_ids_of(args.predict)
    history = history_of(args, recommender)
    assert history is not None  # --fallback alone leaves somebody without one
    say([f"movie {movie_id} has no training ratings: only its features speak for it" for movie_id in movie_ids
         if not recommender.movies.num_train_ratings[recommender.movie_idx_of(movie_id)]])
    say(recommender.date_remarks(history=history, leaves_out=False))
    rows = recommender.predictions(history, movie_ids)
    if args.explain:
        recommender.explain(history, rows)
    show(args, recommender, rows, "predicted", heading_of(args, history, "; stars as predicted"), history.user_id,
         "rating")


def list_asked(args: argparse.Namespace, recommender: Recommender, filters: Filters) -> None:
    """Print the movies whose ratings would tell most about a person; without a flag that names one, somebody new."""
    history = history_of(args, recommender)
    assert history is not None  # --fallback alone leaves somebody without one
    say(recommender.date_remarks(filters, history))
    show(args, recommender, recommender.ask(history, args.ask, filters), "ask",
         heading_of(args, history, "; rate these next"), history.user_id)


def heading_of(args: argparse.Namespace, history: History, order: str) -> str:
    """Say whose list it is."""
    who = "somebody new"
    if history.user_id is not None:
        who = f"user {shown_id(history.user_id, 40, sys.stdout.encoding)}"
    chosen = history.user_id is not None and args.user_id is None
    return (f"{who}, {count(len(history.movie_idx), 'movie')} rated"
            f"{'; test ratings left aside' if args.as_of_training else ''}{order}"
            f"{' (chosen by the seed; see --user_id)' if chosen else ''}")


def history_of(args: argparse.Namespace, recommender: Recommender) -> History | None:
    """Return the ratings of the person asked for; None if nothing is known of them and --fallback lets that pass."""
    own = OwnRatings() if args.ratings_file is None else read_ratings(args.ratings_file, recommender)
    say(own.remarks)
    given = own.stars | find_rated(recommender, args.rate or [])
    if args.user_id is not None and args.fallback and not recommender.has_user(args.user_id):
        instead = "the ratings given are all that is known" if given else "listing popular movies instead"
        say([f"user_id {args.user_id} is not in the data set: {instead}"])
        return recommender.history_from(given) if given else None
    if args.user_id is None and (given or args.ask is not None):
        return recommender.history_from(given)
    history = recommender.history_of(recommender.any_user_id() if args.user_id is None else args.user_id)
    return recommender.add_ratings(history, given) if given else history


def say(remarks: list[str]) -> None:
    """Print what is no part of a list."""
    for remark in remarks:
        print(printable(remark), file=sys.stderr)


def show(args: argparse.Namespace, recommender: Recommender, rows: list[Recommendation], kind: str, heading: str,
         user_id: Id | None = None, ranked_by: str | None = None, movie_id: Id | None = None) -> None:
    """Print a list."""
    if args.json:
        print(as_json(kind, rows, user_id, movie_id, ranked_by, recommender.as_of))
        return
    if recommender.as_of is not None:
        heading += f"; as of {recommender.as_of}"
    print(textwrap.fill(heading if len(heading) <= WIDTH else heading.replace("; see --user_id", ""), WIDTH))
    if kind == "search" and not rows:
        return
    if rows:
        lowest, highest = recommender.meta["stars_range"]
        print(as_table(rows, highest if lowest >= 0 else math.inf, sys.stdout.encoding))
    else:
        seen = " that is not rated already" if kind in ("user", "new", "ask") else ""
        print(f"nothing to list: no movie passes the filters{seen}")


def write_all(args: argparse.Namespace, recommender: Recommender) -> None:
    """Write everybody's list."""
    from recommending.batch import joined, recommend_all

    with joined() as ranks:
        num_lists, num_without = recommend_all(recommender, args.out, args.top_n, args.run_dir / "best.pt", ranks)
    if not ranks.is_main:
        return
    print(f"wrote the lists of {count(num_lists, 'user')} to {args.out}"
          + (f"; {count(num_without, 'user')} had nothing left that could be listed" if num_without else ""))


def export(args: argparse.Namespace, recommender: Recommender) -> None:
    """Write everybody's vectors."""
    from recommending.batch import export_vectors, joined

    with joined() as ranks:
        num_users, num_movies = export_vectors(recommender, args.export_vectors, args.run_dir / "best.pt", ranks)
    if not ranks.is_main:
        return
    print(f"wrote the vectors of {num_users:,} users and {num_movies:,} movies to {args.export_vectors}")


def draw(args: argparse.Namespace, recommender: Recommender, filters: Filters) -> None:
    """Draw the map and say what is in it."""
    from recommending.movie_map import draw_map, map_movies, map_object

    say(recommender.date_remarks(filters))
    movie_map = map_movies(recommender, filters)
    labelled = draw_map(args.map, recommender, movie_map)
    if args.json:
        print(as_json_object(map_object(recommender, movie_map, args.map)))
    else:
        print(f"{args.map}: {count(len(movie_map.movie_idx), 'movie')}, {len(labelled)} of them labelled")


if __name__ == "__main__":
    atexit.register(gc.freeze)  # or Python, before it ends, looks for garbage among all that PyTorch is made of: 0.4 s
    code = main()
    if NUM_PROCESSES > 1:
        from recommending.batch import leave

        leave(code)
    sys.exit(code)
