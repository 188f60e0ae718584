import json

import pytest

from recommending.formatting import as_json, as_table, count, draw_stars, fit
from recommending.recommender import Reason, Recommendation

TITLES = ["Heat", "七人の侍" * 20, "a" * 200, "\x1b[31mred\x07", "tab\there\nline", "e\u0301" * 60, "\u202eleft",
          "😀" * 50, 'the "quoted" one', "", "\u3000\u00a0wide space"]


def rows(**values) -> list[Recommendation]:
    return [Recommendation(rank, rank, title, 1999, 123_456_789 if rank == 2 else 7, because=[
        Reason(1, title, 4.5, -12.345)], **values) for rank, title in enumerate(TITLES, start=1)]


def columns(text: str) -> int:
    """Columns of a text made of what the tests use."""
    return sum(0 if c == "\u0301" else 2 if c in "七人の侍😀" else 1 for c in text)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", None, "no such encoding"])
@pytest.mark.parametrize("values", [
    {"stars": 4.4}, {"stars": 4.6, "rated": 3.5, "interval": [3.25, 5.0]}, {"similarity": -0.123}])
def test_lines_are_aligned_in_80_columns_whatever_the_titles(encoding, values):
    lines = as_table(rows(**values), 5, encoding).split("\n")
    assert len(lines) == 1 + 2 * len(TITLES)
    assert all(columns(line) <= 80 and line.isprintable() for line in lines)
    text = [line.rstrip(" ★½") for line in lines[1::2]]
    assert len({columns(line) for line in text} | {columns(lines[0])}) == 1
    assert ("★" in lines[1]) == (encoding == "utf-8" and "stars" in values)


def test_every_line_can_be_encoded():
    as_table(rows(stars=4.4), 5, "latin-1").encode("latin-1")


def test_a_row_shows_what_it_holds():
    row = Recommendation(1, 5, "Heat", None, 1234, stars=3.4, rated=1)
    assert as_table([row], 5, "utf-8").split("\n")[1].split() == ["1", "5", "Heat", "-", "1,234", "1", "3.40", "★★★½"]
    row.because = [Reason(6, "Alien", 1, 0.25)]
    assert as_table([row], 10, "utf-8").split("\n")[1:] == [
        f"   1   5  Heat{' ' * 37}     -    1,234      1   3.40", "      +0.25 for 1 star given to Alien"]


def test_stars_are_drawn_to_the_nearest_half():
    assert [draw_stars(x) for x in (0.5, 1, 3.4, 4.74, 4.76, 5)] == ["½", "★", "★★★½", "★★★★½", "★★★★★", "★★★★★"]


def test_nouns_follow_their_numbers():
    assert [count(x, "star") for x in (1, 0.5, 2, 12345)] == ["1 star", "0.5 stars", "2 stars", "12,345 stars"]


@pytest.mark.parametrize(("text", "width", "shown"), [
    ("\x1b[31mred", 10, "?[31mred  "), ("a" * 50, 10, "aaaaaaa..."), ("a" * 10, 10, "a" * 10),
    ("七人の侍", 10, "七人の侍  "), ("七人の侍七人の侍", 10, "七人の... "),
    ("e\u0301" * 11, 10, "e\u0301" * 7 + "..."), ("a\u00a0b", 4, "a b "),
])
def test_fit_keeps_the_width_and_shows_control_characters_harmless(text, width, shown):
    assert fit(text, width) == shown


def test_fit_shows_what_the_encoding_does_not_have():
    assert fit("Élan 七", 8, "latin-1") == "Élan ?  "
    assert fit("Élan 七", 8, "ascii") == "?lan ?  "


def test_a_list_says_so_where_no_rating_raised_a_movie():
    one, two = (Recommendation(1, 7, "Heat", 1995, 3, stars=4.0, because=because) for because in ([], None))
    assert as_table([one], 5, "utf-8").split("\n")[2:] == ["      no rating raised it: it is liked by most"]
    assert len(as_table([two], 5, "utf-8").split("\n")) == 2


def test_json_is_one_line_of_ascii_with_the_same_keys_for_every_list():
    for values in ({"stars": 4.123456}, {"similarity": 0.5}):
        text = as_json("new", rows(**values))
        assert text.isascii() and "\n" not in text
        result = json.loads(text)
        assert list(result) == ["kind", "user_id", "movie_id", "ranked_by", "as_of", "recommendations"]
        assert [row["title"] for row in result["recommendations"]] == TITLES
        for row in result["recommendations"]:
            assert list(row) == ["rank", "movie_id", "title", "year", "num_ratings", "stars", "stars_bound", "interval",
                                 "probabilities", "similarity", "rated", "because"]
            assert list(row["because"][0]) == ["movie_id", "title", "stars", "effect"]
    assert json.loads(as_json("new", rows(stars=4.123456)))["recommendations"][0]["stars"] == 4.1235
