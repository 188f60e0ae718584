// The page: what a person types stays here, in the address and in the browser's storage. The server answers questions.

import { TYPED, fromAddress, keep, stored } from "/address.js";
import { exportFile, importFile } from "/files.js";
import { refresh, showUser } from "/list.js";
import { map } from "/map.js";
import { open, showOpened } from "/movie.js";
import { FIRST, MOST, page, person } from "/page.js";
import { $, count, fill, make, row, shownTitle } from "/rows.js";
import { ask, attempt, onReturn, post, say } from "/server.js";
import "/search.js";

const ASKED = 5, // movies to rate
  UNDO = 100,
  OWN_SHOWN = 30; // own ratings, until all are asked for

let asked = [], // movies to rate
  passed = new Set(), // those that were passed over
  undo = [],
  showAll = false;

// --- ratings --------------------------------------------------------------------------------------------------------

function give(movie, given) {
  const id = String(movie.movie_id),
    before = page.state.ratings.get(id);
  page.known.set(id, { ...movie, ...page.known.get(id) });
  if (before === given || (given === null && before === undefined)) return;
  remember();
  page.state.ratings.delete(id);
  if (given !== null) page.state.ratings.set(id, given);
  const picked = $("picked").contains(document.activeElement);
  if (String($("picked").dataset.movie) === id && given !== null) $("picked").hidden = true;
  changed(given === null ? `${shownTitle(movie)}: taken back.` : `${shownTitle(movie)}: ${count(given, "star")}.`);
  if (picked) $("search").focus();
}

function remember() {
  undo.push(new Map(page.state.ratings));
  undo = undo.slice(-UNDO);
}

async function changed(said) {
  const listed = refresh(said); // first: while the server works, the rest is shown
  keep();
  showRated();
  showAsked();
  if ($("movie").open) showOpened();
  await listed;
  await replaceAsked();
}

/** Take over the ratings of a file, as many as a question may hold. */
async function addRatings(ratings) {
  remember();
  for (const [id, stars] of Object.entries(ratings)) {
    page.state.ratings.delete(id);
    if (page.state.ratings.size < page.facts.most_ratings) page.state.ratings.set(id, stars);
  }
  await titles([...page.state.ratings.keys()]);
  await changed("The file is read.");
}

async function titles(ids) {
  const unknown = ids.filter((id) => !page.known.has(id));
  for (let begin = 0; begin < unknown.length; begin += MOST) {
    const parts = new URLSearchParams(unknown.slice(begin, begin + MOST).map((id) => ["movie_id", id]));
    await ask(`/api/movies?${parts}`);
  }
}

function showRated() {
  const own = [...page.state.ratings].reverse();
  $("rated-count").textContent = own.length ? `(${own.length.toLocaleString("en")})` : "";
  $("nav-count").textContent = own.length ? `(${own.length.toLocaleString("en")})` : "";
  $("rated-none").hidden = own.length > 0;
  fill(
    $("rated"),
    own
      .slice(0, showAll ? own.length : OWN_SHOWN)
      .map(([id]) => row(page.known.get(id) ?? { movie_id: id, title: `movie ${id}` })),
  );
  $("rated-more").hidden = showAll || own.length <= OWN_SHOWN;
  $("undo").disabled = !undo.length;
  $("clear").disabled = $("export").disabled = !own.length;
}

// --- movies to rate -------------------------------------------------------------------------------------------------

async function fetchAsked() {
  const number = Math.min(ASKED + passed.size + asked.length, MOST);
  const body = await post("/api/ask", { ...person(), top_n: number });
  return body.recommendations.filter(
    (movie) => !passed.has(String(movie.movie_id)) && !page.state.ratings.has(String(movie.movie_id)),
  );
}

/** Keep the movies that are asked for where they stand; others take the place of those that are rated. */
async function replaceAsked() {
  await attempt(async () => {
    if (asked.length && asked.every((movie) => !page.state.ratings.has(String(movie.movie_id)))) return;
    const fresh = await fetchAsked();
    const here = new Set(asked.map((movie) => String(movie.movie_id)));
    const others = fresh.filter((movie) => !here.has(String(movie.movie_id)));
    asked = (asked.length ? asked : others.splice(0, ASKED))
      .map((movie) => (page.state.ratings.has(String(movie.movie_id)) ? others.shift() : movie))
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
    asked.map((movie) => row(movie)),
  );

// --- beginning ------------------------------------------------------------------------------------------------------

page.give = give;
page.open = open;
onReturn(start);

function showForm() {
  const fields = $("filters").elements;
  for (const key of TYPED) fields[key].value = page.state[key];
  fields.seen.checked = page.state.seen;
  document.querySelectorAll("[name=rank_by]").forEach((one) => {
    one.checked = one.value === page.state.rank_by;
    one.disabled = !page.facts.can_rank_by.includes(one.value);
  });
}

async function start() {
  await attempt(async () => {
    if (!page.facts) {
      page.facts = await ask("/api/run");
      $("facts").textContent =
        `${count(page.facts.num_movies, "movie")}, ${count(page.facts.num_ratings, "rating")} by ` +
        `${count(page.facts.num_users, "user")} until ${page.facts.last_day}`;
      $("filters").elements.user.placeholder = page.facts.example_user_id ?? "";
      [$("filters").elements.date.min, $("filters").elements.date.max] = [page.facts.first_day, page.facts.last_day];
      page.state = fromAddress(location.hash.length > 1 ? location.hash.slice(1) : stored());
    }
    await loaded();
  });
}

/** Show a state that has just come from an address, from storage or from a server that is back. */
async function loaded() {
  showForm();
  if (TYPED.some((key) => page.state[key])) $("narrow").open = true;
  await titles([...page.state.ratings.keys()]);
  const unknown = [...page.state.ratings.keys()].filter((id) => !page.known.has(id));
  unknown.forEach((id) => page.state.ratings.delete(id));
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
      before = `${page.state.user} ${page.state.date}`;
    for (const key of TYPED) page.state[key] = fields[key].value.trim();
    page.state.seen = fields.seen.checked;
    $("user-said").textContent = "";
    keep();
    if (`${page.state.user} ${page.state.date}` !== before) showUser();
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
  $("theme").setAttribute(
    "aria-label",
    { system: "Auto colours", light: "Light colours", dark: "Dark colours" }[theme],
  );
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
$("others").addEventListener("click", otherAsked);
$("undo").addEventListener("click", takeBack);
$("clear").addEventListener("click", () => {
  remember();
  page.state.ratings = new Map();
  changed("All ratings are cleared.");
});
$("rated-more").addEventListener("click", () => {
  showAll = true;
  showRated();
});
$("import").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", async () => {
  await importFile($("file").files[0], addRatings);
  $("file").value = "";
});
$("export").addEventListener("click", exportFile);
$("more").addEventListener("click", () => {
  page.state.top_n = Math.min(page.state.top_n < 20 ? 20 : page.state.top_n + 20, MOST);
  keep();
  refresh();
});
$("filters").addEventListener("input", typed);
$("filters").addEventListener("submit", (event) => event.preventDefault());
$("filters").addEventListener("reset", () => setTimeout(typed));
$("order").addEventListener("change", (event) => {
  page.state.rank_by = event.target.value;
  keep();
  refresh("The order is changed.");
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
  if (page.facts) {
    page.state = fromAddress(location.hash.slice(1));
    start();
  }
});

function takeBack() {
  if (!undo.length) return;
  page.state.ratings = undo.pop();
  changed("The last change is undone.");
  if ($("undo").disabled) $("search").focus();
}

start();
