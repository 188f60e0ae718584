// The page: what a person types stays here, in the address and in the browser's storage. The server answers questions.

import { showMap } from "/map.js";
import { $, because, count, factsOf, fill, focusOn, make, name, row, score, shownTitle, signed, stars } from "/rows.js";

const ASKED = 5,
  SIMILAR = 6,
  FIRST = 10,
  MOST = 200,
  UNDO = 100,
  OWN_SHOWN = 30;
const EMPTY = {
  ratings: new Map(),
  rank_by: "rating",
  top_n: FIRST,
  year_from: "",
  year_to: "",
  min_ratings: "",
  title: "",
  user: "",
  date: "",
  seen: false,
};

let facts; // of the data set
let state = { ...EMPTY, ratings: new Map() };
let known = new Map(); // movies that were listed, by the text of their id
let list = []; // rows of the person's list
let asked = [],
  passed = new Set(); // movies to rate, and those that were passed over
let undo = [],
  showAll = false,
  gone = false,
  question = null,
  opened = null;

// --- the server ---------------------------------------------------------------------------------------------------

class Refused extends Error {}

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    lost();
    throw error;
  }
  if (gone) found();
  const body = await answer.json().catch(() => ({ error: `the server answers with ${answer.status}` }));
  if (!answer.ok) throw Object.assign(new Refused(body.error), { status: answer.status });
  (body.recommendations ?? []).forEach((movie) => known.set(String(movie.movie_id), movie));
  return body;
}

const post = (path, body, signal) =>
  ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });

function lost() {
  if (gone) return;
  gone = true;
  trouble("The server does not answer. Your ratings are safe in this page; it tries again by itself.");
  const again = setInterval(async () => {
    if (gone && !(await fetch("/healthz", { cache: "no-store" }).catch(() => null))?.ok) return;
    clearInterval(again);
    found();
  }, 1500);
}

function found() {
  if (!gone) return;
  gone = false;
  trouble(null);
  start();
}

function trouble(sentence) {
  $("trouble").hidden = sentence === null;
  if (sentence !== null) $("trouble").firstElementChild.textContent = sentence;
}

/** Do something that asks the server; say what it refuses. */
async function attempt(work, say = trouble) {
  try {
    await work();
    return true;
  } catch (error) {
    if (error instanceof Refused) say(`${error.message[0].toUpperCase()}${error.message.slice(1)}.`);
    else if (error.name !== "AbortError" && !(error instanceof TypeError && gone)) throw error;
    return false;
  }
}

const say = (text) => {
  $("live").textContent = text;
};

// --- what is typed: in the address, in storage ----------------------------------------------------------------------

function asAddress() {
  const parts = new URLSearchParams();
  if (state.ratings.size)
    parts.set("ratings", [...state.ratings].map(([id, given]) => `${encodeURIComponent(id)}:${given}`).join(","));
  for (const key of ["user", "title", "year_from", "year_to", "min_ratings", "date"])
    if (state[key] !== "") parts.set(key, state[key]);
  if (state.rank_by !== EMPTY.rank_by) parts.set("rank_by", state.rank_by);
  if (state.top_n !== FIRST) parts.set("top_n", state.top_n);
  if (state.seen) parts.set("seen", "1");
  return parts.toString().replaceAll("%3A", ":").replaceAll("%2C", ","); // those of an id are encoded twice
}

function fromAddress(text) {
  const parts = new URLSearchParams(text),
    read = { ...EMPTY, ratings: new Map() };
  for (const pair of (parts.get("ratings") ?? "").split(",").slice(0, facts.most_ratings)) {
    const at = pair.lastIndexOf(":");
    let id;
    try {
      id = decodeURIComponent(pair.slice(0, at));
    } catch {
      continue;
    }
    const given = Number(pair.slice(at + 1));
    if (at > 0 && id.length <= 500 && given >= facts.stars_range[0] && given <= facts.stars_range[1])
      read.ratings.set(id, given);
  }
  for (const key of ["user", "title", "year_from", "year_to", "min_ratings", "date"])
    read[key] = (parts.get(key) ?? "").slice(0, 500);
  if (facts.can_rank_by.includes(parts.get("rank_by"))) read.rank_by = parts.get("rank_by");
  read.top_n = Math.min(Math.max(Math.trunc(Number(parts.get("top_n"))) || FIRST, 1), MOST);
  read.seen = parts.get("seen") === "1";
  return read;
}

const place = () => `two towers ${facts.data_set}`;

function keep() {
  const text = asAddress();
  history.replaceState(null, "", text ? `#${text}` : location.pathname);
  try {
    localStorage.setItem(place(), text);
  } catch {
    /* a browser may forbid storage: the address remains */
  }
}

function stored() {
  try {
    return localStorage.getItem(place()) ?? "";
  } catch {
    return "";
  }
}

// --- ratings --------------------------------------------------------------------------------------------------------

function give(movie, given) {
  const id = String(movie.movie_id),
    before = state.ratings.get(id);
  known.set(id, { ...movie, ...known.get(id) });
  if (before === given || (given === null && before === undefined)) return;
  remember();
  state.ratings.delete(id);
  if (given !== null) state.ratings.set(id, given);
  const picked = $("picked").contains(document.activeElement);
  if (String($("picked").dataset.movie) === id && given !== null) $("picked").hidden = true;
  changed(given === null ? `${shownTitle(movie)}: taken back.` : `${shownTitle(movie)}: ${count(given, "star")}.`);
  if (picked) $("search").focus();
}

function remember() {
  undo.push(new Map(state.ratings));
  undo = undo.slice(-UNDO);
}

function changed(said) {
  keep();
  showRated();
  replaceAsked();
  if (opened && $("movie").open) showOpened();
  return refresh(said);
}

async function titles(ids) {
  const unknown = ids.filter((id) => !known.has(id));
  for (let begin = 0; begin < unknown.length; begin += MOST) {
    const parts = new URLSearchParams(unknown.slice(begin, begin + MOST).map((id) => ["movie_id", id]));
    await ask(`/api/movies?${parts}`);
  }
}

function showRated() {
  const own = [...state.ratings].reverse();
  $("rated-count").textContent = own.length ? `(${own.length.toLocaleString("en")})` : "";
  $("nav-count").textContent = own.length ? `(${own.length.toLocaleString("en")})` : "";
  $("rated-none").hidden = own.length > 0;
  fill(
    $("rated"),
    own
      .slice(0, showAll ? own.length : OWN_SHOWN)
      .map(([id, given]) => rated(known.get(id) ?? { movie_id: id, title: `movie ${id}` }, given)),
  );
  $("rated-more").hidden = showAll || own.length <= OWN_SHOWN;
  $("undo").disabled = !undo.length;
  $("clear").disabled = $("export").disabled = !own.length;
}

const rated = (movie, given, said) => row(movie, facts, given, (value) => give(movie, value), open, said);

// --- movies to rate -------------------------------------------------------------------------------------------------

const person = () => ({
  ratings: Object.fromEntries(state.ratings),
  ...(state.user ? { user_id: state.user } : {}),
  ...(state.date ? { date: state.date } : {}),
});

/** Write the end of an address, with the date that is asked about. */
const asOf = (parts) => new URLSearchParams({ ...parts, ...(state.date ? { date: state.date } : {}) });

async function fetchAsked() {
  const number = Math.min(ASKED + passed.size + asked.length, MOST);
  const body = await post("/api/ask", { ...person(), top_n: number });
  return body.recommendations.filter(
    (movie) => !passed.has(String(movie.movie_id)) && !state.ratings.has(String(movie.movie_id)),
  );
}

/** Keep the movies that are asked for where they stand; others take the place of those that are rated. */
async function replaceAsked() {
  await attempt(async () => {
    if (asked.length && asked.every((movie) => !state.ratings.has(String(movie.movie_id)))) return;
    const fresh = await fetchAsked();
    const here = new Set(asked.map((movie) => String(movie.movie_id)));
    const others = fresh.filter((movie) => !here.has(String(movie.movie_id)));
    asked = (asked.length ? asked : others.splice(0, ASKED))
      .map((movie) => (state.ratings.has(String(movie.movie_id)) ? others.shift() : movie))
      .filter(Boolean);
  });
  showAsked();
}

async function otherAsked() {
  asked.forEach((movie) => passed.add(String(movie.movie_id)));
  asked = [];
  await attempt(async () => {
    asked = (await fetchAsked()).slice(0, ASKED);
  });
  if (asked.length < ASKED) passed.clear();
  showAsked();
}

const showAsked = () =>
  fill(
    $("asked"),
    asked.map((movie) =>
      row(movie, facts, state.ratings.get(String(movie.movie_id)), (value) => give(movie, value), open),
    ),
  );

// --- the list -------------------------------------------------------------------------------------------------------

function wholeNumber(key, least, most) {
  const text = state[key].trim(),
    field = $("filters").elements[key];
  const wrong = text !== "" && !(/^\d+$/.test(text) && +text >= least && +text <= most);
  field.setAttribute("aria-invalid", String(wrong));
  return text === "" || wrong ? null : Number(text);
}

async function refresh(said = "") {
  question?.abort();
  const own = (question = new AbortController());
  $("list").setAttribute("aria-busy", "true");
  const filters = {
    year_from: wholeNumber("year_from", 0, 9999),
    year_to: wholeNumber("year_to", 0, 9999),
    min_ratings: wholeNumber("min_ratings", 0, 2 ** 31 - 1) ?? 1,
    title: state.title,
    include_seen: state.seen,
  };
  let answer = null;
  const done = await attempt(
    async () => {
      answer = await post(
        "/api/recommend",
        { ...person(), top_n: state.top_n, rank_by: state.rank_by, explain: true, filters },
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
  if (!gone) $("list").setAttribute("aria-busy", "false");
  if (!done) return;
  $("user-said").textContent = "";
  if (!gone) trouble(null);
  const before = new Map(list.map((movie) => [String(movie.movie_id), movie.rank]));
  const first = !list.length;
  list = answer.recommendations;
  showList(answer, first ? null : before);
  map.mark(state.ratings, list);
  if (said) say(`${said} ${list.length ? `First on your list: ${shownTitle(list[0])}.` : "Nothing to list."}`);
}

function showList(answer, before) {
  const number = state.ratings.size,
    of = state.user ? `User ${answer.user_id}${number ? ` and ${count(number, "rating")} of yours` : ""}` : "";
  const whose = number ? `From ${count(number, "rating")}` : "Before you rate: what most people like";
  const order = state.rank_by === "relevance" ? "most likely to be watched and liked next" : "highest stars first";
  $("about-list").textContent =
    [of || whose, order, ...(answer.as_of ? [`as of ${answer.as_of}`] : [])].join(", ");
  const rows = list.map((movie) => {
    const id = String(movie.movie_id),
      was = before?.get(id),
      given = state.ratings.get(id) ?? movie.rated ?? undefined;
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
        name(movie, open),
        make(
          "div",
          { class: "side" },
          score(movie.stars, facts),
          stars(movie, facts, given, (value) => give(movie, value)),
        ),
        because(movie.because),
      ),
    );
  });
  while (rows.length < Math.min(FIRST, state.top_n)) rows.push(make("li", { class: "blank", "aria-hidden": "true" }));
  fill($("list"), rows);
  $("list-none").hidden = list.length > 0;
  $("list-none").textContent = list.length ? "" : "No movie passes the filters. Widen them, or reset them all.";
  $("more").hidden = list.length < state.top_n || state.top_n >= MOST;
  const narrowed =
    ["year_from", "year_to", "min_ratings", "title", "user", "date"].filter((key) => state[key] !== "").length +
    state.seen;
  $("narrowed").textContent = narrowed ? `(${narrowed} set)` : "";
}

async function showUser() {
  $("of-user").hidden = !state.user;
  if (!state.user) return;
  await attempt(
    async () => {
      const body = await ask(
        `/api/users/${encodeURIComponent(state.user)}?${asOf({ top_n: OWN_SHOWN })}`,
      );
      $("of-user").querySelector("h3").textContent =
        `User ${body.user_id}: ${count(body.num_ratings, "rating")}, the last`;
      fill(
        $("of-user").querySelector("ul"),
        body.ratings.map((one) => {
          const id = String(one.movie_id);
          return rated(one, state.ratings.get(id) ?? one.stars, `${one.year ?? "year unknown"} · ${one.date}`);
        }),
      );
    },
    () => {
      $("of-user").hidden = true;
    },
  );
}

// --- search ---------------------------------------------------------------------------------------------------------

let results = [],
  chosen = -1,
  searching = null;

async function search() {
  searching?.abort();
  const text = $("search").value.trim(),
    own = (searching = new AbortController());
  if (!text) return showFound([], "");
  await attempt(async () => {
    const body = await ask(`/api/movies?${new URLSearchParams({ query: text, top_n: 8 })}`, { signal: own.signal });
    if (searching === own) showFound(body.recommendations, text);
  });
}

function showFound(movies, text) {
  results = movies;
  chosen = movies.length ? 0 : -1;
  $("found").replaceChildren(
    ...movies.map((movie, number) => {
      const given = state.ratings.get(String(movie.movie_id));
      return make(
        "li",
        {
          role: "option",
          id: `found-${number}`,
          onpointerdown: (event) => event.preventDefault(),
          onclick: () => pick(movie),
        },
        make("span", { class: "name" }, make("bdi", {}, shownTitle(movie))),
        make("small", {}, given === undefined ? factsOf(movie) : `${given} ★`),
      );
    }),
  );
  $("found").hidden = !movies.length;
  $("found-none").hidden = !text || movies.length > 0;
  $("found-none").textContent = `No title has “${text.slice(0, 40)}” in it. A part of the title is enough.`;
  mark();
}

function mark() {
  [...$("found").children].forEach((option, number) => option.setAttribute("aria-selected", String(number === chosen)));
  $("search").setAttribute("aria-expanded", String(!$("found").hidden));
  if (chosen >= 0) {
    $("search").setAttribute("aria-activedescendant", `found-${chosen}`);
    $("found").children[chosen].scrollIntoView({ block: "nearest" });
  } else $("search").removeAttribute("aria-activedescendant");
}

function pick(movie) {
  $("search").value = "";
  showFound([], "");
  $("picked").hidden = false;
  $("picked").dataset.movie = movie.movie_id;
  const box = row(
    movie,
    facts,
    state.ratings.get(String(movie.movie_id)),
    (value) => give(movie, value),
    open,
  ).firstElementChild;
  $("picked").replaceChildren(box);
  focusOn(box.querySelector("[data-stars]"));
}

// --- one movie ------------------------------------------------------------------------------------------------------

async function open(movie) {
  opened = { movie: { ...movie, ...known.get(String(movie.movie_id)) }, like: null };
  showOpened();
  if (!$("movie").open) $("movie").showModal();
  $("movie").scrollTop = 0;
  $("movie-title").focus();
  const own = opened;
  await attempt(
    async () => {
      own.like = (
        await ask(
          `/api/similar/${encodeURIComponent(movie.movie_id)}?${asOf({ top_n: SIMILAR })}`,
        )
      ).recommendations;
    },
    () => {
      own.like = [];
    },
  );
  if (opened === own) showOpened();
}

function effectBar(fraction) {
  const full = make("div");
  full.style.width = `${100 * fraction}%`;
  return make("div", { class: "effect-bar", "aria-hidden": "true" }, full);
}

function showOpened() {
  const { movie, like } = opened,
    id = String(movie.movie_id),
    listed = list.find((one) => String(one.movie_id) === id);
  $("movie-title").replaceChildren(make("bdi", {}, shownTitle(movie)));
  $("movie-facts").textContent = factsOf(movie);
  fill($("movie-stars"), [
    stars(movie, facts, state.ratings.get(id), (value) => give(movie, value)),
    ...(listed
      ? [make("span", { class: "hint" }, `${listed.rank} on your list, ${listed.stars.toFixed(2)} stars predicted`)]
      : []),
  ]);
  const reasons = listed?.because ?? [],
    most = Math.max(...reasons.map((reason) => reason.effect), 0.01);
  $("movie-why").replaceChildren(
    ...(reasons.length
      ? [
          make("h3", {}, "What raised its score most"),
          make(
            "ul",
            {},
            ...reasons.map((reason) =>
              make(
                "li",
                {},
                make("span", {}, `${count(reason.stars, "star")} given to `, make("bdi", {}, shownTitle(reason))),
                effectBar(reason.effect / most),
                make("span", { class: "effect" }, signed(reason.effect)),
              ),
            ),
          ),
        ]
      : []),
  );
  fill(
    $("movie-like"),
    like === null
      ? [make("li", { class: "hint" }, "Loading …")]
      : like.length
        ? like.map((one) =>
            row(
              one,
              facts,
              state.ratings.get(String(one.movie_id)),
              (value) => give(one, value),
              open,
              `${factsOf(one)} · ${Math.round(100 * one.similarity)} % alike`,
            ),
          )
        : [make("li", { class: "hint" }, "No movie is much like it.")],
  );
}

// --- files ----------------------------------------------------------------------------------------------------------

/** A title for a table: none where a program that opens it might obey, or a reader stumble; the id says which movie. */
const forTable = (title) =>
  /^[=+\-@\s]|[\p{C}]/u.test(title) || title.length > 200 ? "" : `"${title.replaceAll('"', '""')}"`;

function exportFile() {
  const lines = [...state.ratings].map(([id, given]) => {
    const movie = known.get(id);
    const own = /^\d+$/.test(id) ? id : `"${id.replaceAll('"', '""')}"`;
    return [own, movie ? forTable(movie.title) : "", movie?.year ?? "", given].join(",");
  });
  const address = URL.createObjectURL(
    new Blob([`movie_id,title,year,stars\n${lines.join("\n")}\n`], { type: "text/csv" }),
  );
  make("a", { href: address, download: "ratings.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

async function importFile(file) {
  if (!file) return;
  const said = (sentence) => {
    $("file-said").textContent = sentence;
  };
  if (file.size > 1 << 20) return said("The file is larger than a mebibyte.");
  await attempt(async () => {
    const body = await ask("/api/ratings_file", {
      method: "POST",
      headers: { "Content-Type": "text/csv" },
      body: file,
    });
    remember();
    for (const [id, given] of Object.entries(body.ratings)) {
      state.ratings.delete(id);
      if (state.ratings.size < facts.most_ratings) state.ratings.set(id, given);
    }
    await titles([...state.ratings.keys()]);
    said([`${count(Object.keys(body.ratings).length, "rating")} read.`, ...body.remarks].join(" ").slice(0, 600));
    await changed("The file is read.");
  }, said);
}

// --- beginning ------------------------------------------------------------------------------------------------------

const map = showMap({ open: (movie) => open(movie), load: () => ask("/api/map") });

function showForm() {
  const fields = $("filters").elements;
  for (const key of ["year_from", "year_to", "min_ratings", "title", "user", "date"]) fields[key].value = state[key];
  fields.seen.checked = state.seen;
  document.querySelectorAll("[name=rank_by]").forEach((one) => {
    one.checked = one.value === state.rank_by;
    one.disabled = !facts.can_rank_by.includes(one.value);
  });
}

async function start() {
  await attempt(async () => {
    if (!facts) {
      facts = await ask("/api/run");
      $("facts").textContent =
        `${count(facts.num_movies, "movie")}, ${count(facts.num_ratings, "rating")} by ` +
        `${count(facts.num_users, "user")} until ${facts.last_day}`;
      $("filters").elements.user.placeholder = facts.example_user_id ?? "";
      [$("filters").elements.date.min, $("filters").elements.date.max] = [facts.first_day, facts.last_day];
      state = fromAddress(location.hash.length > 1 ? location.hash.slice(1) : stored());
    }
    await loaded();
  });
}

/** Show a state that has just come from an address, from storage or from a server that is back. */
async function loaded() {
  showForm();
  if (["year_from", "year_to", "min_ratings", "title", "user", "date"].some((key) => state[key]))
    $("narrow").open = true;
  await titles([...state.ratings.keys()]);
  const unknown = [...state.ratings.keys()].filter((id) => !known.has(id));
  unknown.forEach((id) => state.ratings.delete(id));
  if (unknown.length)
    $("file-said").textContent =
      `${count(unknown.length, "movie")} of the link ` +
      `${unknown.length === 1 ? "is" : "are"} not in this data set, and left out.`;
  keep();
  showRated();
  await Promise.all([refresh(), replaceAsked(), showUser(), map.load()]);
}

let typing;
function typed() {
  clearTimeout(typing);
  typing = setTimeout(() => {
    const fields = $("filters").elements,
      before = `${state.user} ${state.date}`;
    for (const key of ["year_from", "year_to", "min_ratings", "title", "user", "date"])
      state[key] = fields[key].value.trim();
    state.seen = fields.seen.checked;
    $("user-said").textContent = "";
    keep();
    if (`${state.user} ${state.date}` !== before) showUser();
    refresh("Filters changed.");
  }, 200);
}

const THEMES = ["system", "light", "dark"],
  dark = matchMedia("(prefers-color-scheme: dark)");
function setTheme(theme) {
  const root = document.documentElement;
  root.classList.toggle("dark", theme === "dark");
  root.classList.toggle("light", theme === "light");
  root.dataset.theme = theme;
  $("theme").setAttribute("aria-label", `Colours: ${theme === "system" ? "as the system" : theme}`);
  $("theme").textContent = { system: "◐ Auto", light: "☀ Light", dark: "☾ Dark" }[theme];
  map.draw();
}

let theme = "system";
try {
  theme = THEMES.includes(localStorage.getItem("two towers theme"))
    ? localStorage.getItem("two towers theme")
    : "system";
} catch {
  /* none is kept */
}
setTheme(theme);
dark.addEventListener("change", () => setTheme(theme));
$("theme").addEventListener("click", () => {
  setTheme((theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length]));
  try {
    localStorage.setItem("two towers theme", theme);
  } catch {
    /* it lasts as long as the page */
  }
});

$("list").replaceChildren(
  ...Array.from({ length: FIRST }, () =>
    make("li", { class: "wait", "aria-hidden": "true" }, make("div", { class: "row" })),
  ),
);
$("asked").replaceChildren(...Array.from({ length: ASKED }, () => make("li", { "aria-hidden": "true" })));
$("trouble").lastElementChild.addEventListener("click", () =>
  gone ? fetch("/healthz").then(found, () => {}) : start(),
);
$("search").addEventListener("input", search);
$("search").addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    if (!results.length) return;
    chosen = (chosen + (event.key === "ArrowDown" ? 1 : -1) + results.length) % results.length;
    mark();
  } else if (event.key === "Enter" && chosen >= 0) pick(results[chosen]);
  else if (event.key === "Escape") {
    $("search").value = "";
    showFound([], "");
  } else return;
  event.preventDefault();
});
$("search").addEventListener("blur", () => {
  $("found").hidden = $("found-none").hidden = true;
  $("search").setAttribute("aria-expanded", "false");
});
$("search").addEventListener("focus", () => {
  if ($("search").value) search();
});
$("others").addEventListener("click", otherAsked);
$("undo").addEventListener("click", takeBack);
$("clear").addEventListener("click", () => {
  remember();
  state.ratings = new Map();
  changed("All ratings are cleared.");
});
$("rated-more").addEventListener("click", () => {
  showAll = true;
  showRated();
});
$("import").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", async () => {
  await importFile($("file").files[0]);
  $("file").value = "";
});
$("export").addEventListener("click", exportFile);
$("more").addEventListener("click", () => {
  state.top_n = Math.min(state.top_n < 20 ? 20 : state.top_n + 20, MOST);
  keep();
  refresh();
});
$("filters").addEventListener("input", typed);
$("filters").addEventListener("submit", (event) => event.preventDefault());
$("filters").addEventListener("reset", () => setTimeout(typed));
$("order").addEventListener("change", (event) => {
  state.rank_by = event.target.value;
  keep();
  refresh("The order is changed.");
});
$("movie-close").addEventListener("click", () => $("movie").close());
$("movie").addEventListener("click", (event) => {
  if (event.target === $("movie")) $("movie").close();
});
$("copy-link").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(location.href);
    say("The link is copied.");
    $("copy-link").textContent = "Copied";
  } catch {
    prompt("The link to this page:", location.href);
  }
  setTimeout(() => {
    $("copy-link").textContent = "Copy link";
  }, 2000);
});
document.querySelectorAll("[data-goto]").forEach((button) =>
  button.addEventListener("click", () => {
    $(button.dataset.goto).focus();
    $(button.dataset.goto).scrollIntoView({ block: "start" });
  }),
);
addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key === "z" && !event.target.matches("input, select")) {
    event.preventDefault();
    takeBack();
  }
});
addEventListener("hashchange", () => {
  if (facts) {
    state = fromAddress(location.hash.slice(1));
    start();
  }
});

function takeBack() {
  if (!undo.length) return;
  state.ratings = undo.pop();
  changed("The last change is undone.");
  if ($("undo").disabled) $("search").focus();
}

start();
