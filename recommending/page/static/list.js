// The person's list, and the ratings of the user of the data set whose list it is.

import { TYPED } from "/address.js";
import { map } from "/map.js";
import { FIRST, MOST, asOf, given, page, person } from "/page.js";
import { $, because, count, fill, make, name, row, score, shownTitle, stars } from "/rows.js";
import { ask, attempt, isGone, post, say, trouble } from "/server.js";

const USER_SHOWN = 30;

let question = null;

function wholeNumber(key, least, most) {
  const text = page.state[key].trim(),
    field = $("filters").elements[key];
  const wrong = text !== "" && !(/^\d+$/.test(text) && +text >= least && +text <= most);
  field.setAttribute("aria-invalid", String(wrong));
  return text === "" || wrong ? null : Number(text);
}

/** Ask for the list, show it, and say what has changed to those who hear the page. */
export async function refresh(said = "") {
  question?.abort();
  const own = (question = new AbortController());
  $("list").setAttribute("aria-busy", "true");
  const filters = {
    year_from: wholeNumber("year_from", 0, 9999),
    year_to: wholeNumber("year_to", 0, 9999),
    min_ratings: wholeNumber("min_ratings", 0, 2 ** 31 - 1) ?? 1,
    title: page.state.title,
    include_seen: page.state.seen,
  };
  let answer = null;
  const done = await attempt(
    async () => {
      answer = await post(
        "/api/recommend",
        { ...person(), top_n: page.state.top_n, rank_by: page.state.rank_by, explain: true, filters },
        own.signal,
      );
    },
    (sentence) => {
      if (/user_id/i.test(sentence)) {
        $("user-said").textContent = sentence;
        $("narrow").open = true;
      } else trouble(sentence);
    },
  );
  if (question !== own) return;
  if (!isGone()) $("list").setAttribute("aria-busy", "false");
  if (!done) return;
  $("user-said").textContent = "";
  if (!isGone()) trouble(null);
  const before = new Map(page.list.map((movie) => [String(movie.movie_id), movie.rank]));
  const first = !page.list.length;
  page.list = answer.recommendations;
  showList(answer, first ? null : before);
  map.mark(page.state.ratings, page.list);
  if (said)
    say(`${said} ${page.list.length ? `First on your list: ${shownTitle(page.list[0])}.` : "Nothing to list."}`);
}

function showList(answer, before) {
  const number = page.state.ratings.size,
    of = page.state.user ? `User ${answer.user_id}${number ? ` and ${count(number, "rating")} of yours` : ""}` : "";
  const whose = number ? `From ${count(number, "rating")}` : "Before you rate: what most people like";
  const order =
    page.state.rank_by === "relevance"
      ? "most likely to be watched and liked next"
      : "highest stars first, movies with few ratings a little lower";
  $("about-list").textContent = [of || whose, order, ...(answer.as_of ? [`as of ${answer.as_of}`] : [])].join(", ");
  const rows = page.list.map((movie) => {
    const id = String(movie.movie_id),
      was = before?.get(id),
      own = given(movie) ?? movie.rated ?? undefined;
    const moved =
      !before || was === movie.rank
        ? ""
        : was === undefined
          ? "new"
          : was > movie.rank
            ? `▲ ${was - movie.rank}`
            : `▼ ${movie.rank - was}`;
    return make(
      "li",
      { class: moved === "new" ? "fresh" : null },
      make(
        "div",
        { class: "row" },
        make(
          "div",
          { class: "rank" },
          String(movie.rank),
          make("span", { class: "moved", "aria-hidden": "true" }, moved),
        ),
        name(movie),
        make("div", { class: "side" }, score(movie.stars, movie.interval), stars(movie, own)),
        because(movie.because),
      ),
    );
  });
  while (rows.length < Math.min(FIRST, page.state.top_n))
    rows.push(make("li", { class: "blank", "aria-hidden": "true" }));
  fill($("list"), rows);
  $("list-none").hidden = page.list.length > 0;
  $("list-none").textContent = page.list.length ? "" : "No movie passes the filters. Widen them, or reset them all.";
  $("more").hidden = page.list.length < page.state.top_n || page.state.top_n >= MOST;
  const narrowed = TYPED.filter((key) => page.state[key] !== "").length + page.state.seen;
  $("narrowed").textContent = narrowed ? `(${narrowed} set)` : "";
}

/** Show the latest ratings of the user of the data set. */
export async function showUser() {
  $("of-user").hidden = !page.state.user;
  if (!page.state.user) return;
  await attempt(
    async () => {
      const body = await ask(`/api/users/${encodeURIComponent(page.state.user)}?${asOf({ top_n: USER_SHOWN })}`);
      $("of-user").querySelector("h3").textContent =
        `User ${body.user_id}: ${count(body.num_ratings, "rating")}, the last`;
      fill(
        $("of-user").querySelector("ul"),
        body.ratings.map((one) => {
          const id = String(one.movie_id);
          return row(one, given(one) ?? one.stars, `${one.year ?? "year unknown"} · ${one.date}`);
        }),
      );
    },
    () => {
      $("of-user").hidden = true;
    },
  );
}
