"""Whatever is typed or lies in a file: a result or one clean sentence (for the parsers: tests/preprocessing)."""

import contextlib
import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import main
import rec
from preprocessing import movielens_preprocess, netflix_preprocess, table_preprocess
from preprocessing.dataset import DataError, integrity, read_meta
from preprocessing.titles import read_titles

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
SLOW = settings(QUICK, max_examples=60)

NUMBERS = st.one_of(st.integers(-10**30, 10**30), st.integers(-2, 100), st.floats(), st.sampled_from(
    ["1e400", "-0", "nan", "inf", "0x10", "1_000", "9" * 5000, "\u0663", "", " 5", "5 ", "+5"])).map(str)
WORDS = st.one_of(NUMBERS, st.text(max_size=8).filter(lambda text: "\0" not in text))
COMMANDS = {"netflix_preprocess": netflix_preprocess, "movielens_preprocess": movielens_preprocess, "main": main,
            "table_preprocess": table_preprocess, "rec": rec}


def flags_of(command: object) -> list[str]:
    """Return the flags that a command's help names."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
        command.parse_args(["--help"])
    return sorted({word.strip("[],") for word in printed.getvalue().split() if word.strip("[],").startswith("--")})


@pytest.mark.parametrize("name", COMMANDS)
@QUICK
@given(data=st.data())
def test_any_flags_are_taken_or_refused_with_code_2(name, data):
    words = st.one_of(st.sampled_from(flags_of(COMMANDS[name])), WORDS)
    argv = data.draw(st.lists(words, max_size=6))
    errors = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
            COMMANDS[name].parse_args(argv)
    except SystemExit as end:
        assert end.code in (0, 2)
        assert end.code == 0 or "error: " in errors.getvalue()


def ask(data_dir: Path, run_dir: Path, *flags: str) -> tuple[int, str, str]:
    """Run rec.py; return its exit code and what it printed to both streams."""
    printed, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        try:
            code = rec.main(["--data_dir", str(data_dir), "--run_dir", str(run_dir), "--json", *flags])
        except SystemExit as end:
            code = end.code
    return code, printed.getvalue(), errors.getvalue()


def demand_json_or_a_sentence(code: int, printed: str, errors: str) -> None:
    if code == 0:
        for row in json.loads(printed)["recommendations"]:
            assert 1 <= row["stars"] <= 5
    else:
        assert code in (1, 2) and printed == "" and errors.count("error: ") == 1


@SLOW
@given(st.one_of(WORDS, st.lists(st.tuples(st.one_of(st.integers(1, 90).map(str), NUMBERS),
                                           st.one_of(st.sampled_from("12345"), NUMBERS)).map(":".join),
                                 max_size=4).map(",".join)))
@example("9223372036854775808:5")
@example("-9223372036854775809:5")
@example("1:5,,")
def test_any_typed_ratings_give_json_or_a_sentence(data_dir, run_dir, text):
    demand_json_or_a_sentence(*ask(data_dir, run_dir, f"--rate={text}"))


@SLOW
@given(NUMBERS, NUMBERS)
@example("9223372036854775808", "10")
@example("-9223372036854775809", "10")
@example("1", "9223372036854775808")
def test_any_user_id_and_length_give_json_or_a_sentence(data_dir, run_dir, user_id, top_n):
    demand_json_or_a_sentence(*ask(data_dir, run_dir, f"--user_id={user_id}", f"--top_n={top_n}"))


ENTRIES = st.sampled_from([*integrity.META_TYPES, "format_version", "digest", "name"])
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
VALUES = st.one_of(PLAIN, st.lists(PLAIN, max_size=3), st.dictionaries(st.text(max_size=5), PLAIN, max_size=3))


@QUICK
@given(changes=st.dictionaries(ENTRIES, VALUES, max_size=3), signed=st.booleans(), text=st.none() | st.binary())
@example(changes={}, signed=True, text=b"[" * 100_000)
def test_any_meta_json_is_read_or_refused(data_dir, tmp_path_factory, changes, signed, text):
    folder = tmp_path_factory.mktemp("meta")
    meta = json.loads((data_dir / "meta.json").read_text()) | changes
    if signed:
        meta["digest"] = integrity.meta_digest(meta)
    (folder / "meta.json").write_bytes(json.dumps(meta).encode() if text is None else text)
    try:
        read = read_meta(folder)
    except DataError as error:
        assert str(folder / "meta.json") in str(error)
    else:
        assert signed or not changes.keys() - {"digest"} or read == json.loads((data_dir / "meta.json").read_text())


@QUICK
@given(st.text(max_size=80), st.integers(4, 60))
def test_any_title_is_shown_in_its_width_and_harmless(title, width):
    shown = rec.fit(title, width)
    assert all(character.isprintable() for character in shown)
    assert len(shown) >= width / 2


@QUICK
@given(st.text())
def test_any_error_is_one_printable_line(text):
    assert str(DataError(text)).isprintable() and len(str(DataError(text))) == len(text)


@pytest.mark.parametrize("space", ["\x1c", "\x1f", "\x85", "\u2003", " ", "\t"])
def test_white_space_of_any_kind_around_a_year_is_no_trap(tmp_path, space):
    """Found by benchmarks/fuzz.py: strip() and float() disagree about what white space is."""
    (tmp_path / "movie_titles.csv").write_text(f"1,{space}1999{space},A\n", encoding="utf-8")
    titles = read_titles(tmp_path / "movie_titles.csv")
    assert titles.year.tolist() == [1999] and titles.title == ["A"]
