"""Every way a person can make one of the three commands end: what was asked, the sentence, the exit code.

{raw}, {data}, {run} are copies of sound folders, {tmp} is the folder they lie in, {new} is not there. A row may damage
something first.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import main
import rec
from models.checkpoint import lock_run, save_checkpoint
from models.ops.ranks import Ranks
from preprocessing import netflix_preprocess, parsing
from preprocessing.dataset import DataError
from training import build

TRAIN = ("--data_dir {data} --run_dir {new} --embedding_dim 16 --ensemble_size 2 --hidden_dim 16 --epochs 1"
         " --num_threads 1"
         " --no-refit")
AGAIN = TRAIN.replace("{new}", "{run}")
LISTS = "--data_dir {data} --run_dir {run}"
PARSES = "--raw_dir {raw} --out_dir {new}"


def write(name: str, content: str) -> Callable[[dict], None]:
    """Return what overwrites a file."""
    return lambda place: Path(name.format(**place)).write_text(content)


def append(name: str, content: str) -> Callable[[dict], None]:
    """Return what adds to a file."""
    def do(place: dict) -> None:
        with open(name.format(**place), "a") as file:
            file.write(content)
    return do


def remove(name: str) -> Callable[[dict], None]:
    """Return what removes a file or folder."""
    def do(place: dict) -> None:
        path = Path(name.format(**place))
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return do


def change(**values: object) -> Callable[[dict], None]:
    """Return what puts other values into both checkpoints."""
    def do(place: dict) -> None:
        for path in Path(place["run"]).glob("*.pt"):
            save_checkpoint(path, torch.load(path, weights_only=True) | values)
    return do


def many_days(place: dict) -> None:
    """Make more users, movies and days than 63 bits can number."""
    raw = Path(place["raw"])
    titles = "\n".join(f"{movie_id},2000,T" for movie_id in range(1, 2**19 + 2))
    (raw / "movie_titles.csv").write_text(titles)
    lines = [f"{user_id},3,{'0001-01-01' if user_id % 2 else '9999-12-31'}" for user_id in range(1, 2**17 + 2)]
    (raw / "combined_data_1.txt").write_text("1:\n" + "\n".join(lines) + "\n")
    for number in (2, 3, 4):
        (raw / f"combined_data_{number}.txt").unlink(missing_ok=True)


NO_CHANGE = None
PREPROCESS_PATHS = [
    (PARSES, NO_CHANGE, "written to {new}; next: python main.py", 0),
    ("--help", NO_CHANGE, "usage: ", 0),
    ("--raw_dir {new}", NO_CHANGE, "{new} is no folder; put the raw files there", 1),
    ("--raw_dir {data} --out_dir {new}", NO_CHANGE, "{data} holds no combined_data_*.txt; name the folder", 1),
    (PARSES, remove("{raw}/movie_titles.csv"), "movie_titles.csv not found; it comes with the rating files", 1),
    (PARSES + " --split probe", NO_CHANGE, "probe.txt not found; put it there, or choose --split latest", 1),
    (PARSES, append("{raw}/combined_data_1.txt", "oops\n"), "'oops' is no rating line (user_id,stars,YYYY-MM-DD)", 1),
    (PARSES, append("{raw}/combined_data_1.txt", "1,6,2005-01-01\n"), "'1,6,2005-01-01' has stars outside 1 to 5", 1),
    (PARSES, append("{raw}/combined_data_1.txt", "1,5,2005-02-30\n"), "'1,5,2005-02-30' has an impossible date", 1),
    (PARSES, append("{raw}/combined_data_1.txt", "99999999999:\n"), "is no movie header", 1),
    (PARSES, append("{raw}/combined_data_1.txt", "7" * 99 + "\n"), "is no rating line", 1),
    (PARSES, append("{raw}/combined_data_1.txt", "1:\n9,5,2005-02-03\n9,4,2005-02-03\n"),
     "user 9 rated movie 1 twice", 1),
    (PARSES, write("{raw}/combined_data_1.txt", "1,5,2005-02-03\n"), "is a rating before the first movie header", 1),
    (PARSES, write("{raw}/probe.txt", "1:\n999999999\n"),
     "none of its 1 pairs is among the ratings; use --split latest", 1),
    (PARSES, write("{raw}/probe.txt", "1:\nx\n"), "'x' is no user_id and no movie header", 1),
    (PARSES, append("{raw}/movie_titles.csv", "oops\n"), "'oops' is not MovieID,Year,Title", 1),
    (PARSES, append("{raw}/movie_titles.csv", "x,1999,A\n"), "has a movie id that is no number", 1),
    (PARSES, append("{raw}/movie_titles.csv", "999,soon,A\n"), "has a year that is neither NULL nor", 1),
    (PARSES, append("{raw}/movie_titles.csv", "1,1999,A\n"), "has a movie id that stands above already", 1),
    ("--raw_dir {raw} --out_dir {run}", NO_CHANGE, "which is no part of a data set and would be lost", 1),
    ("--raw_dir {raw} --out_dir {run}/best.pt", NO_CHANGE, "best.pt is a file; name a folder with --out_dir", 1),
    (PARSES + " --split sometimes", NO_CHANGE, "--split: invalid choice: 'sometimes'", 2),
    (PARSES + " --test_fraction 1", NO_CHANGE, "--test_fraction must lie between 0 and 1, not 1.0", 2),
    (PARSES + " --val_fraction nan", NO_CHANGE, "--val_fraction must lie between 0 and 1, not nan", 2),
    (PARSES + " --latest_n 0", NO_CHANGE, "--latest_n must be at least 1, not 0", 2),
    (PARSES + " --seed -1", NO_CHANGE, "--seed must be a whole number from 0 to 2^63 - 1, not -1", 2),
    (PARSES + " --max_memory 0", NO_CHANGE, "--max_memory must be at least 1 MiB, not 0", 2),
    (PARSES + " --out out", NO_CHANGE, "unrecognized arguments: --out out", 2),
]
TRAIN_PATHS = [
    (TRAIN, NO_CHANGE, "see {new}/training.png; next: python rec.py --run_dir {new}", 0),
    (AGAIN + " --eval_only", NO_CHANGE, "two towers", 0),
    ("--help", NO_CHANGE, "usage: ", 0),
    (TRAIN, remove("{data}"), "meta.json not found; run: python preprocessing/netflix_preprocess.py", 1),
    (TRAIN, write("{data}/meta.json", "{{"), "meta.json is damaged; run: python preprocessing/", 1),
    (TRAIN, write("{data}/meta.json", '{"format_version": 1}'), "has format version 1, this program reads version", 1),
    (TRAIN, remove("{data}/ratings.parquet"), "ratings.parquet not found; run: python preprocessing/", 1),
    (TRAIN, write("{data}/users.parquet", "PAR1PAR1"), "users.parquet is damaged", 1),
    (AGAIN, NO_CHANGE, "{run} holds a run already; go on with it by --resume", 1),
    (AGAIN + " --resume", remove("{run}/last.pt"), "last.pt not found; run: python main.py --run_dir {run}", 1),
    (AGAIN + " --resume", write("{run}/last.pt", "?"), "last.pt is damaged or no checkpoint; run: python main.py", 1),
    (AGAIN + " --resume", change(config={}), "last.pt is no checkpoint of this version", 1),
    (AGAIN + " --resume", change(fingerprint="0" * 64), "was trained on another data set (fingerprint 000000000000", 1),
    (AGAIN + " --resume", change(metrics=[{}]), "last.pt holds no state to go on from", 1),
    ("--resume --run_dir {run}", NO_CHANGE, "nothing is left to train after epoch 12; a larger --", 0),
    ("--resume --run_dir {run}", change(flags={}), "last.pt does not say where its data set lies; name its folder", 1),
    (AGAIN + " --resume --hidden_dim 8", NO_CHANGE, "was trained with --hidden_dim 16, not 8", 1),
    (TRAIN + " --eval_only", NO_CHANGE, "best.pt not found; run: python main.py --run_dir {new}", 1),
    (TRAIN + " --lr 1e30", NO_CHANGE, "the loss is no longer finite in epoch 1", 1),
    (TRAIN.replace("{new}", "{run}/best.pt"), NO_CHANGE, "best.pt is a file; name a folder with --run_dir", 1),
    (TRAIN + " --epochs 0", NO_CHANGE, "--epochs must be at least 1, not 0", 2),
    (TRAIN + " --batch_size 0", NO_CHANGE, "--batch_size must be at least 1, not 0", 2),
    (TRAIN + " --patience 0", NO_CHANGE, "--patience must be at least 1, not 0", 2),
    (TRAIN + " --embedding_dim 9", NO_CHANGE, "--embedding_dim 9 must be a multiple of --ensemble_size 2", 2),
    (TRAIN + " --lr inf", NO_CHANGE, "--lr must be above 0, not inf", 2),
    (TRAIN + " --dropout 1", NO_CHANGE, "--dropout must be at least 0 and below 1, not 1.0", 2),
    (TRAIN + " --l2 -1", NO_CHANGE, "--l2 must be at least 0, not -1.0", 2),
    (TRAIN + " --seed -1", NO_CHANGE, "--seed must be a whole number from 0 to 2^40 - 1, not -1", 2),
    (TRAIN + " --num_threads 0", NO_CHANGE, "--num_threads must be at least 1, not 0", 2),
    (TRAIN + " --resume --overwrite", NO_CHANGE, "--resume goes on with a run, --overwrite replaces it: choose one", 2),
    (TRAIN + " --without year,stars", NO_CHANGE, "there is no part 'stars'; choose of user_embedding, ", 2),
    (TRAIN + " --blend left", NO_CHANGE, "--blend: invalid choice: 'left'", 2),
    (AGAIN + " --resume --without year", NO_CHANGE, "was trained with --without nothing, not year", 1),
    (AGAIN + " --resume --blend both", NO_CHANGE, "was trained with --blend user, not both", 1),
    (TRAIN + " --device tpu", NO_CHANGE, "--device: invalid choice: 'tpu'", 2),
    (TRAIN + " --epoch 3", NO_CHANGE, "unrecognized arguments: --epoch 3", 2),
]
RECOMMEND_PATHS = [
    (LISTS, NO_CHANGE, "movies rated (chosen by the seed; see --user_id)", 0),
    (LISTS + " --rate 1:5 --json", NO_CHANGE, '"recommendations": [', 0),
    ("--help", NO_CHANGE, "usage: ", 0),
    (LISTS + " --user_id 999999999", NO_CHANGE, "user_id 999999999 is not in the data set; for somebody new", 1),
    (LISTS + " --rate 999999999:5", NO_CHANGE, "movie_id 999999999 is not in the data set", 1),
    (LISTS + " --rate 1:6", NO_CHANGE, "movie_id 1 is given 6 stars, outside 1 to 5", 1),
    (LISTS + " --rate 1:nan", NO_CHANGE, "movie_id 1 is given nan stars, outside 1 to 5", 1),
    (LISTS, remove("{data}"), "meta.json not found; run: python preprocessing/netflix_preprocess.py", 1),
    (LISTS, remove("{data}/movies.parquet"), "movies.parquet not found; run: python preprocessing/", 1),
    (LISTS, write("{data}/movies.parquet", "?"), "movies.parquet is damaged", 1),
    (LISTS, remove("{run}"), "{run} not found; run: python main.py --run_dir {run} --data_dir {data}", 1),
    (LISTS, remove("{run}/best.pt"), "best.pt not found; run: python main.py --run_dir {run}", 1),
    (LISTS, write("{run}/best.pt", "?"), "best.pt is damaged or no checkpoint; run: python main.py", 1),
    (LISTS, change(model={}), "best.pt is no checkpoint of this version", 1),
    (LISTS, change(fingerprint="0" * 64), "was trained on another data set (fingerprint 000000000000", 1),
    (LISTS + " --top_n 0", NO_CHANGE, "--top_n must be at least 1, not 0", 2),
    (LISTS + " --top_n ten", NO_CHANGE, "--top_n: invalid int value: 'ten'", 2),
    (LISTS + " --rate 5", NO_CHANGE, "'5' is not MOVIE:STARS", 2),
    (LISTS + " --rate 5:3,5:4", NO_CHANGE, "movie_id 5 is rated twice", 2),
    (LISTS + " --date 2001-02-03", NO_CHANGE, "movies rated", 0),
    (LISTS + " --date yesterday", NO_CHANGE, "'yesterday' is no date; write it as YYYY-MM-DD", 2),
    (LISTS + " --date 2003/06/30", NO_CHANGE, "'2003/06/30' is no date; write it as YYYY-MM-DD", 2),
    (LISTS + " --popular", NO_CHANGE, "popular movies, most ratings first", 0),
    (LISTS + " --popular --user_id 1", NO_CHANGE, "--popular asks about movies and not about a person", 2),
    (LISTS + " --search the", NO_CHANGE, 'with "the" in the title, most ratings first', 0),
    (LISTS + " --search qqq", NO_CHANGE, 'no movie has "qqq" in its title', 0),
    (LISTS + " --list_users 5", NO_CHANGE, "5 of 400 users, most ratings first", 0),
    (LISTS + " --list_users 0", NO_CHANGE, "--list_users must be at least 1, not 0", 2),
    (LISTS + " --as_of_training", NO_CHANGE, "; test ratings left aside", 0),
    (LISTS + " --similar_to 1", NO_CHANGE, "like movie 1", 0),
    (LISTS + " --similar_to 999999999", NO_CHANGE, "movie_id 999999999 is not in the data set", 1),
    (LISTS + " --similar_to 1 --user_id 1", NO_CHANGE, "--similar_to asks about movies and not about a person", 2),
    (LISTS + " --year_from 2001 --year_to 2000", NO_CHANGE, "lies after --year_to 2000: no movie could pass", 2),
    (LISTS + " --min_ratings -1", NO_CHANGE, "--min_ratings must be at least 0, not -1", 2),
    (LISTS + " --title no-such-title", NO_CHANGE, "nothing to list: no movie passes the filters", 0),
    (LISTS + " --fallback popular", NO_CHANGE, "--fallback is for an unknown user: name one with --user_id", 2),
    (LISTS + " --user_id 999999999 --fallback popular", NO_CHANGE, "popular movies, most ratings first", 0),
    (LISTS + " --ratings_file {tmp}/none.csv", NO_CHANGE, "none.csv", 1),
    (LISTS + " --map {tmp}/map.gif", NO_CHANGE, "map.gif must end in .png, .pdf or .svg", 2),
    (LISTS + " --all_users --out {tmp}/recs.parquet", NO_CHANGE, "wrote the lists of 388 users to {tmp}/recs", 0),
    (LISTS + " --all_users --out {tmp}/r.parquet --min_ratings 5", NO_CHANGE, "does not go with --min_ratings", 2),
    (LISTS + " --all_users", NO_CHANGE, "--all_users and --out FILE go together", 2),
    (LISTS + " --all_users --out {data}/users.parquet", NO_CHANGE, "users.parquet exists already; remove it, or", 1),
    (LISTS + " --all_users --out {tmp}/recs.csv", NO_CHANGE, "wrote the lists of 388 users to {tmp}/recs.csv", 0),
    (LISTS + " --all_users --out {tmp}/recs.xlsx", NO_CHANGE, "recs.xlsx must end in .parquet or .csv", 2),
    (LISTS + " --all_users --out {tmp}/r.parquet --title x", NO_CHANGE, "it does not go with --title", 2),
    (LISTS + " --export_vectors {tmp}/vectors", NO_CHANGE, "wrote the vectors of 400 users", 0),
    (LISTS + " --export_vectors {run}", NO_CHANGE, "{run} exists already", 1),
    (LISTS + " --user 5", NO_CHANGE, "unrecognized arguments: --user 5", 2),
]
TABLE = [(command, *row) for command, rows in ((netflix_preprocess, PREPROCESS_PATHS), (main, TRAIN_PATHS),
                                               (rec, RECOMMEND_PATHS)) for row in rows]


@pytest.fixture
def place(raw_dir, data_dir, run_dir, tmp_path) -> dict[str, str]:
    """Copies of sound folders, for a row to damage."""
    for name, folder in (("raw", raw_dir), ("data", data_dir), ("run", run_dir)):
        shutil.copytree(folder, tmp_path / name)
    (tmp_path / "raw" / "probe.txt").unlink(missing_ok=True)
    (tmp_path / "raw" / "planted_truth.npz").unlink(missing_ok=True)
    return {"raw": f"{tmp_path}/raw", "data": f"{tmp_path}/data", "run": f"{tmp_path}/run", "new": f"{tmp_path}/new",
            "tmp": str(tmp_path)}


def end_of(command: object, argv: list[str]) -> int:
    """Run a command; return its exit code, however it ends."""
    try:
        return command.main(argv)
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize(("command", "argv", "damage", "sentence", "code"), TABLE, ids=[
    f"{command.__name__.split('.')[-1]}: {sentence}" for command, _, _, sentence, _ in TABLE])
def test_every_exit_path_has_its_sentence_and_code(capsys, place, command, argv, damage, sentence, code):
    if damage:
        damage(place)
    assert end_of(command, argv.format(**place).split()) == code
    printed = capsys.readouterr()
    said = printed.err if code else printed.out
    assert sentence.format(**place) in said
    assert "Traceback" not in printed.out + printed.err
    if code == 1:
        assert said.replace("\r", "\n").rstrip("\n").split("\n")[-1].startswith("error: ")
        assert said.endswith("\n") and said.count("error: ") == 1


def test_too_many_users_movies_and_days_for_a_key_are_refused(capsys, place):
    many_days(place)
    assert netflix_preprocess.main(PARSES.format(**place).split()) == 1
    assert "are too many to be indexed in 63 bits" in capsys.readouterr().err


def test_no_training_rating_is_refused(capsys, place):
    raw = Path(place["raw"])
    for path in raw.glob("combined_data_*.txt"):
        path.unlink()
    (raw / "combined_data_1.txt").write_text("1:\n7,3,2005-01-01\n")
    (raw / "probe.txt").write_text("1:\n7\n")
    assert netflix_preprocess.main(PARSES.format(**place).split()) == 0
    assert main.main(["--data_dir", place["new"], "--run_dir", f"{place['tmp']}/other"]) == 1
    assert f"{place['new']} has no training ratings; preprocess more ratings" in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_named(capsys, place, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main.main([*TRAIN.format(**place).split(), "--device", "cuda"]) == 1
    assert "--device cuda, but this PyTorch finds no GPU; use --device cpu or auto" in capsys.readouterr().err


def test_each_process_works_on_a_gpu_of_its_own_and_more_processes_than_gpus_are_refused(monkeypatch):
    used = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    for rank in (0, 1):
        assert build.choose_device("auto", Ranks(rank, 3, rank)) == torch.device(f"cuda:{rank}")
    with pytest.raises(DataError, match="GPUs on this machine: 2, fewer than processes; start so many with --nproc"):
        build.choose_device("auto", Ranks(2, 3, 2))
    assert build.choose_device("cpu", Ranks(2, 3, 2)) == torch.device("cpu")
    assert used == [0, 1]


def test_a_run_that_another_process_works_in_is_refused(capsys, place):
    with lock_run(Path(place["run"])):
        assert main.main([*AGAIN.format(**place).split(), "--resume"]) == 1
    assert f"another run is working in {place['run']}; wait for it" in capsys.readouterr().err


@pytest.mark.parametrize(("module", "name", "command", "argv", "sentence"), [
    (parsing, "parse_files", netflix_preprocess, PARSES, "interrupted; {new} is as it was"),
    (main, "load_dataset", main, TRAIN, "interrupted; no epoch was finished, nothing was written"),
    (main, "load_dataset", main, AGAIN + " --resume", "--run_dir {run} --resume"),
    (rec, "run", rec, LISTS, ""),
])
def test_ctrl_c_ends_with_130(capsys, place, monkeypatch, module, name, command, argv, sentence):
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, name, interrupt)
    assert end_of(command, argv.format(**place).split()) == 130
    assert sentence.format(**place) in capsys.readouterr().err


@pytest.mark.parametrize(("error", "sentence"), [
    (MemoryError(), "error: out of memory; {new} is as it was"),
    (OSError(28, "No space left on device"), "error: {new}: the disk is full; {new} is as it was"),
    (OSError(5, "Input/output error"), "error: {new}: Input/output error; {new} is as it was"),
    (OSError("no number"), "error: {new}: no number; {new} is as it was"),
    (DataError("two\nlines \x1b[2J"), "error: two?lines ?[2J\n"),
])
def test_what_the_machine_denies_is_said(capsys, place, monkeypatch, error, sentence):
    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(parsing, "parse_files", fail)
    assert netflix_preprocess.main(PARSES.format(**place).split()) == 1
    assert sentence.format(**place) in capsys.readouterr().err
    monkeypatch.setattr(main, "load_dataset", fail)
    assert main.main(TRAIN.format(**place).split()) == 1
    monkeypatch.setattr(rec, "run", fail)
    assert rec.main(LISTS.format(**place).split()) == 1
    assert capsys.readouterr().err.count("error: ") == 2
