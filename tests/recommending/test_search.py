"""A search of titles, in the forms in which people write them."""

from recommending.recommender import Filters


def test_a_search_knows_the_forms_in_which_people_write_titles(planted):
    planted.movies.title[:] = ["Matrix, The", "Am\u00e9lie (Fabuleux destin d'Am\u00e9lie Poulain, Le)",
                               "Schindler\u2019s List", "Theater", "The Atlantic", "X-Men 2"]
    found = {text: [row.movie_id for row in planted.search(text, Filters(min_ratings=0))] for text in (
        "the matrix", "amelie", "le fabuleux destin", "schindler's", "heat", "x men", "XMEN2", "at", "?")}
    assert found == {"the matrix": [10], "amelie": [20], "le fabuleux destin": [20], "schindler's": [30],
                     "heat": [40], "x men": [60], "XMEN2": [60], "at": [10, 40, 50], "?": []}
    assert planted.suggestion("Teater") == "; did you mean Theater (year unknown, movie_id 40)?"
    assert planted.suggestion("zzz") == ""


def test_a_title_much_like_a_text_is_found_and_so_is_a_word_of_it(planted):
    planted.movies.title[:] = ["Jurassic Park", "The Lost World: Jurassic Park", "Heat", "Theater", "Fargo", "Alien"]
    found = {text: [row.movie_id for row in planted.search_alike(text)] for text in (
        "Jurasic Parc", "jurasic", "Teater", "Farggo", "zzz", "")}
    assert found == {"Jurasic Parc": [10], "jurasic": [10, 20], "Teater": [40], "Farggo": [50], "zzz": [], "": []}
