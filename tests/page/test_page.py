"""The page in a browser: what it shows is what the API answers, by mouse, by keyboard, on a phone, with no server."""

import io
import json
import os
import signal
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.serving import ROOT, Server, served

PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True}


def until(page, expression: str) -> None:
    """Wait until an expression is true; the page's own policy forbids Playwright's way, which is eval."""
    for _ in range(500):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(20)
    raise AssertionError(expression)


def rows_of(page) -> list[tuple[str, str]]:
    """Return title and predicted stars of the list on the screen."""
    return page.evaluate("""() => [...document.querySelectorAll('#list > li:not(.blank)')].map((item) => [
        item.querySelector('.name bdi').textContent, item.querySelector('.score > span:not(.sr)').textContent])""")


def ratings_of(page) -> dict[str, float]:
    """Return the ratings in the page's address."""
    address = httpx.QueryParams(page.url.partition("#")[2])
    return {movie_id: float(stars) for movie_id, _, stars in (
        pair.rpartition(":") for pair in address.get("ratings", "").split(",") if pair)}


def shows(page, server: Server, **question: object) -> None:
    """Check that the list on the screen, with its reasons, is the API's."""
    page.wait_for_selector("#list[aria-busy=false]")
    answer = server.client.post("/api/recommend", json={"explain": True, **question}).json()["recommendations"]
    assert rows_of(page) == [[row["title"].strip(), f"{row['stars']:.2f}"] for row in answer]
    reasons = page.locator("#list > li:not(.blank) .because").all_text_contents()
    assert reasons == ["because you gave " + "; ".join(
        f"{reason['stars']:g} to {reason['title'].strip()} +{reason['effect']:.2f}" for reason in row["because"])
        if row["because"] else "" for row in answer]


def rate(page, place: str, number: int, stars: int) -> None:
    with page.expect_response("**/api/recommend"):
        page.locator(f"{place} > li").nth(number).get_by_role("button", name=f"{stars} star", exact=False).first.click()


def test_stars_by_mouse_change_the_list_to_that_of_the_api(visit, server):
    page = visit()
    assert page.locator("#rated-none").is_visible()
    shows(page, server, ratings={})
    rate(page, "#asked", 1, 5)
    rate(page, "#asked", 0, 2)
    rate(page, "#list", 2, 4)  # a movie of the list leaves it
    ratings = ratings_of(page)
    assert sorted(ratings.values()) == [2, 4, 5]
    shows(page, server, ratings=ratings)
    assert page.locator("#rated > li").count() == 3 and page.locator("#rated-count").inner_text() == "(3)"
    assert page.locator("#asked > li").count() == 5  # others took the place of the rated ones
    page.locator("#rated > li").first.get_by_role("button", name="Take back").click()
    until(page, "!location.hash.includes(':4')")
    shows(page, server, ratings={movie_id: stars for movie_id, stars in ratings.items() if stars != 4})


def test_undo_clear_and_ctrl_z(visit, server):
    page = visit()
    assert page.locator("#undo").is_disabled() and page.locator("#clear").is_disabled()
    for number, stars in ((0, 5), (1, 1), (2, 3)):
        rate(page, "#asked", number, stars)
    before = ratings_of(page)
    with page.expect_response("**/api/recommend"):
        page.locator("#clear").click()
    assert ratings_of(page) == {} and page.locator("#rated > li").count() == 0
    with page.expect_response("**/api/recommend"):
        page.locator("#undo").click()
    assert ratings_of(page) == before
    with page.expect_response("**/api/recommend"):
        page.keyboard.press("Control+z")
    assert ratings_of(page) == dict(list(before.items())[:2])
    shows(page, server, ratings=ratings_of(page))


def test_keyboard_alone_finds_rates_and_opens(visit, server):
    page = visit()
    title = server.client.get("/api/popular").json()["recommendations"][3]["title"]
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to your list"
    for _ in range(3):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "search"
    typed = title[:12].strip().upper()
    with page.expect_response(lambda answer: httpx.URL(answer.url).params.get("query") == typed) as found:
        page.keyboard.type(typed)
    found.value.finished()
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")  # else an arrow is lost
    page.wait_for_selector("#found li")
    chosen = page.locator("#found li[aria-selected=true]")
    while title not in chosen.inner_text():
        page.keyboard.press("ArrowDown")
    assert page.get_attribute("#search", "aria-activedescendant") == chosen.get_attribute("id")
    page.keyboard.press("Enter")
    assert title in page.evaluate("document.activeElement.closest('[role=group]').ariaLabel")
    with page.expect_response("**/api/recommend"), page.expect_response("**/api/ask"):  # which shows others to rate
        page.keyboard.press("4")
    assert list(ratings_of(page).values()) == [4] and page.evaluate("document.activeElement.id") == "search"
    page.keyboard.press("Tab")  # Show others
    page.keyboard.press("Tab")  # the first movie's title
    page.keyboard.press("Tab")  # its stars
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.ariaLabel") == "5 stars"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    with page.expect_response("**/api/recommend"):
        page.keyboard.press("Enter")
    assert list(ratings_of(page).values()) == [4, 3]
    shows(page, server, ratings=ratings_of(page))
    until(page, "document.activeElement.closest('#asked') !== null")  # the focus is where it was
    until(page, "document.querySelector('#live').textContent.includes('3 stars. First on your list: ')")
    page.locator("#list .name button").nth(1).focus()
    opened = page.evaluate("document.activeElement.textContent")
    page.keyboard.press("Enter")
    page.wait_for_selector("#movie-like [data-stars]")
    assert page.locator("#movie-title").inner_text() == opened
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.textContent") == opened
    page.locator("#list [data-stars] [tabindex='0']").first.focus()
    with page.expect_response("**/api/recommend"):
        page.keyboard.press("2")
    until(page, "document.activeElement.closest('#list > li') === document.querySelector('#list > li')")


def test_a_title_with_a_slip_in_it_is_found_too(visit, server):
    page = visit()
    title = server.client.get("/api/popular").json()["recommendations"][0]["title"]
    word = max(title.replace("(", " ").replace(")", " ").replace(",", " ").split(), key=len)
    page.fill("#search", word[:2] + word[3:])  # a letter is missing
    page.wait_for_selector("#found li")
    assert word.lower() in page.locator("#found").inner_text().lower()
    assert "perhaps" in page.locator("#found li").first.inner_text()


def test_filters_order_user_and_date_are_those_of_the_api(visit, server):
    facts = server.client.get("/api/run").json()
    page = visit(expected="404")
    page.locator("summary").click()
    page.fill("[name=year_from]", "1950")
    page.fill("[name=min_ratings]", "30")
    until(page, "location.hash.includes('min_ratings=30')")
    narrow = {"year_from": 1950, "min_ratings": 30}
    shows(page, server, ratings={}, filters=narrow)
    with page.expect_response("**/api/recommend"):
        page.fill("[name=user]", str(facts["example_user_id"]))
    shows(page, server, user_id=facts["example_user_id"], filters=narrow)
    page.wait_for_selector("#of-user li")
    assert f"User {facts['example_user_id']}" in page.locator("#about-list").inner_text()
    with page.expect_response("**/api/recommend"):
        page.fill("[name=date]", "2003-03-04")
    shows(page, server, user_id=facts["example_user_id"], filters=narrow, date="2003-03-04")
    with page.expect_response("**/api/recommend"):
        page.get_by_text("Relevance", exact=True).click()
    shows(page, server, user_id=facts["example_user_id"], filters=narrow, date="2003-03-04", rank_by="relevance")
    with page.expect_response("**/api/recommend"):
        page.fill("[name=user]", "99999999")
    until(page, "document.querySelector('#user-said').textContent.includes('not in the data set')")
    with page.expect_response("**/api/recommend"):
        page.get_by_role("button", name="Reset").click()
    shows(page, server, ratings={}, rank_by="relevance")
    with page.expect_response("**/api/recommend"):
        page.fill("[name=title]", "no title has this")
    page.wait_for_selector("#list-none:not([hidden])")
    page.fill("[name=year_from]", "soon")
    page.wait_for_selector("[name=year_from][aria-invalid=true]")


def test_a_link_brings_everything_back_and_so_does_the_browser(visit, server):
    page = visit()
    rate(page, "#asked", 0, 5)
    rate(page, "#asked", 2, 1)
    page.locator("summary").click()
    page.fill("[name=title]", "the")
    until(page, "location.hash.includes('title=the')")
    address, ratings = page.url.partition("#")[2], ratings_of(page)
    elsewhere = visit(f"#{address}")
    shows(elsewhere, server, ratings=ratings, filters={"title": "the"})
    assert elsewhere.input_value("[name=title]") == "the" and ratings_of(elsewhere) == ratings
    again = visit(context=page.context)  # without the link: from the browser's storage
    shows(again, server, ratings=ratings, filters={"title": "the"})
    odd = visit("#ratings=999999:5,x,%25:3,1:99,2:4,:1&rank_by=chance&top_n=-7&user=&title=%00")
    assert ratings_of(odd) == {"2": 4} and "1 movie of the link is not" in odd.locator("#file-said").inner_text()


def test_an_exported_file_is_read_back(visit, server, tmp_path):
    page = visit()
    for number, stars in ((0, 5), (1, 2), (3, 4)):
        rate(page, "#asked", number, stars)
    with page.expect_download() as download:
        page.locator("#export").click()
    download.value.save_as(tmp_path / "ratings.csv")
    text = (tmp_path / "ratings.csv").read_text(encoding="utf-8")
    assert text.splitlines()[0] == "movie_id,title,year,stars" and text.count("\n") == 4
    elsewhere = visit()
    with elsewhere.expect_response("**/api/recommend"):
        elsewhere.set_input_files("#file", tmp_path / "ratings.csv")
    assert ratings_of(elsewhere) == ratings_of(page)
    assert elsewhere.locator("#file-said").inner_text() == "3 ratings read."
    (tmp_path / "wrong.csv").write_text("movie,when\n1,2\n")
    wrong = visit(expected="422")
    wrong.set_input_files("#file", tmp_path / "wrong.csv")
    until(wrong, "document.querySelector('#file-said').textContent.includes('The file, line 1')")


def test_the_map_opens_the_movie_that_is_clicked(visit, server):
    page = visit()
    page.wait_for_selector("#map-said", state="hidden")
    page.locator("#canvas").scroll_into_view_if_needed()
    movies = sorted(server.client.get("/api/map").json()["movies"], key=lambda movie: movie["x"])
    box = page.locator("#canvas").bounding_box()
    xs, ys = [movie["x"] for movie in movies], [movie["y"] for movie in movies]
    scale = 0.92 * min(box["width"] / (max(xs) - min(xs)), box["height"] / (max(ys) - min(ys)))
    left = movies[0]
    at = (box["x"] + box["width"] / 2 + (left["x"] - (max(xs) + min(xs)) / 2) * scale,
          box["y"] + box["height"] / 2 - (left["y"] - (max(ys) + min(ys)) / 2) * scale)
    page.mouse.move(*at)
    page.wait_for_selector("#tip:not([hidden])")
    assert left["title"].strip() in page.locator("#tip").inner_text()
    page.mouse.click(*at)
    page.wait_for_selector("#movie[open]")
    assert page.locator("#movie-title").inner_text() == left["title"].strip()
    page.wait_for_selector("#movie-like [data-stars]")
    with page.expect_response("**/api/recommend"):
        page.locator("#movie-stars").get_by_role("button", name="5 stars").click()
    assert ratings_of(page) == {str(left["movie_id"]): 5}
    similar = server.client.get(f"/api/similar/{left['movie_id']}?top_n=6").json()["recommendations"]
    assert page.locator("#movie-like bdi").all_inner_texts() == [row["title"].strip() for row in similar]
    page.locator("#movie-like .name button").first.click()
    until(page, f"document.querySelector('#movie-title').textContent === {json.dumps(similar[0]['title'].strip())}")
    page.locator("#movie-close").click()
    page.locator("#canvas").focus()
    for key in ("+", "ArrowLeft", "ArrowUp", "-"):
        page.keyboard.press(key)
    assert page.locator("#map-middle").inner_text().startswith("In the middle: ")
    page.keyboard.press("Enter")
    page.wait_for_selector("#movie[open]")


@pytest.mark.parametrize("settings", [{}, {"color_scheme": "dark"}, PHONE, {**PHONE, "color_scheme": "dark"},
                                      {"viewport": {"width": 2560, "height": 1300}}])
def test_axe_finds_nothing_in_any_state_and_nothing_is_wider_than_the_screen(visit, settings):
    from axe_playwright_python.sync_playwright import Axe

    def violations() -> list[str]:
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        response = Axe().run(page).response
        return [f"{one['id']}: {[node['target'] for node in one['nodes']][:3]}" for one in response["violations"]]

    page = visit(**settings, reduced_motion="reduce")
    page.wait_for_selector("#map-said", state="hidden")
    rate(page, "#asked", 0, 5)
    rate(page, "#asked", 1, 2)
    page.locator("summary").click()
    page.fill("#search", "the")
    page.wait_for_selector("#found li")
    assert violations() == []
    page.locator("#list .name button").first.click()
    page.wait_for_selector("#movie-like [data-stars]")
    assert violations() == []
    dark = settings.get("color_scheme") == "dark"
    red = int(page.evaluate("getComputedStyle(document.body).backgroundColor").split("(")[1].split(",")[0])
    assert (red < 60) is dark


def test_on_a_phone_everything_is_large_enough_to_touch(visit, server):
    page = visit(**PHONE)
    rate(page, "#asked", 0, 4)
    small = page.evaluate("""() => [...document.querySelectorAll('button, input:not([type=radio])')].filter((one) => {
        const box = one.getBoundingClientRect();
        return box.width && (box.width < 24 || box.height < 24);
    }).map((one) => one.outerHTML.slice(0, 90))""")
    assert small == []
    page.get_by_role("navigation").get_by_role("button", name="List").tap()
    until(page, "document.querySelector('#list-heading').getBoundingClientRect().top < 200")
    assert page.locator("nav").is_visible() and "(1)" in page.locator("nav").inner_text()
    page.locator("#list > li").first.get_by_role("button", name="5 stars").tap()
    until(page, "location.hash.includes(':5')")
    shows(page, server, ratings=ratings_of(page))


def test_nothing_moves_while_the_list_changes(visit):
    page = visit()
    where = """() => [...document.querySelectorAll('#list > li, #asked > li')].map(
        (one) => one.getBoundingClientRect().toJSON())"""
    until(page, "document.querySelectorAll('#asked [data-stars]').length === 5")
    page.evaluate("""() => {
        window.shifts = [];
        new PerformanceObserver((found) => shifts.push(...found.getEntries().map((one) => one.value))).observe(
            {type: 'layout-shift', buffered: true});
    }""")
    before = page.evaluate(where)
    for number, stars in ((0, 5), (0, 4), (3, 1)):
        rate(page, "#asked", number, stars)
        page.wait_for_selector("#list[aria-busy=false]")
        assert page.evaluate(where) == before
    page.fill("#search", "zzzz")
    page.wait_for_selector("#found-none:not([hidden])")
    assert page.evaluate(where) == before
    assert sum(page.evaluate("shifts")) < 0.05, page.evaluate("shifts")  # the ratings grow, below what was there


def test_a_server_that_stops_and_comes_back_loses_nothing(visit, run_dir, data_dir):
    first = Server(run_dir, data_dir)
    page = visit(address=first.address, expected="ERR_CONNECTION")
    rate(page, "#asked", 0, 5)
    first.end(signal.SIGTERM)
    page.locator("#asked > li").nth(1).get_by_role("button", name="4 stars").click()
    page.wait_for_selector("#trouble:not([hidden])")
    assert "does not answer" in page.locator("#trouble").inner_text() and len(ratings_of(page)) == 2
    second = Server(run_dir, data_dir, first.port)
    try:
        page.wait_for_selector("#trouble", state="hidden")
        shows(page, second, ratings=ratings_of(page))
    finally:
        second.end()


def test_titles_of_a_stranger_s_data_set_are_text(visit, run_dir, data_dir, tmp_path):
    hostile = ["<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>", "\u202egnitar\u0007\x1b[31m\u200b",
               "x" * 2000, "=HYPERLINK(\"http://evil\")", "\"quoted\", 'and' `ticked` ${1}", " ", "م" * 300]
    with served(run_dir, data_dir, titles=hostile) as server:
        ids = [movie["movie_id"] for movie in server.client.get("/api/map").json()["movies"]]
        address = "#seen=1&ratings=" + ",".join(f"{movie_id}:5" for movie_id in ids[:8] if movie_id <= 9)
        page = visit(address, address=server.address)
        page.on("dialog", lambda dialog: pytest.fail("a title has become a program"))
        page.wait_for_selector("#map-said", state="hidden")
        assert page.evaluate("document.querySelectorAll('img, main script, [onerror]').length") == 0
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert "<img src=x" in page.locator("#rated").inner_text() and "\u202e" not in page.locator("body").inner_text()
        page.fill("#search", "script")
        page.wait_for_selector("#found li")
        with page.expect_download() as download:
            page.locator("#export").click()
        download.value.save_as(tmp_path / "ratings.csv")
        assert "=HYPER" not in Path(tmp_path / "ratings.csv").read_text(encoding="utf-8")
        elsewhere = visit(address=server.address)
        with elsewhere.expect_response("**/api/recommend"):
            elsewhere.set_input_files("#file", tmp_path / "ratings.csv")
        assert ratings_of(elsewhere) == ratings_of(page)


@pytest.mark.skipif(not os.environ.get("RENEW_SESSIONS"), reason="make sessions takes the pictures of the documents")
def test_the_pictures_of_the_documents_are_taken(browser):
    demo, pictures = ROOT / "demo", ROOT / "docs" / "pictures"
    with served(demo / "run", demo / "processed") as server:
        first = server.client.post("/api/ask", json={"ratings": {}, "top_n": 5}).json()["recommendations"]
        stars = (5, 2, 4, 1, 4)
        ratings = ",".join(f"{row['movie_id']}:{given}" for row, given in zip(first, stars, strict=True))
        for name, settings in (("page", {"viewport": {"width": 1600, "height": 1000}}),
                               ("page_phone", {"viewport": {"width": 360, "height": 740}, "color_scheme": "dark"})):
            page = browser.new_page(**settings, reduced_motion="reduce")
            page.goto(f"{server.address}#ratings={ratings}")
            page.wait_for_selector("#map-said", state="hidden")
            if name == "page_phone":
                page.get_by_role("navigation").get_by_role("button", name="List").click()
            page.wait_for_timeout(500)
            with Image.open(io.BytesIO(page.screenshot())) as taken:
                taken.convert("RGB").quantize(128).save(pictures / f"{name}.png", optimize=True)
