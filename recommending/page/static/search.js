// The search: suggestions while one types; the one that is chosen gets its stars below the field.

import { given } from "/page.js";
import { $, factsOf, focusOn, make, row, shownTitle } from "/rows.js";
import { ask, attempt } from "/server.js";

const SHOWN = 8,
  SHORTEST_ALIKE = 4, // letters of a text for which titles much like it are looked up
  PAUSE_MS = 300;

let results = [],
  chosen = -1,
  searching = null;

async function search() {
  searching?.abort();
  const text = $("search").value.trim(),
    own = (searching = new AbortController());
  if (!text) return showFound([], "");
  await attempt(async () => {
    const look = async (how) =>
      (await ask(`/api/movies?${new URLSearchParams({ query: text, top_n: SHOWN, ...how })}`, { signal: own.signal }))
        .recommendations;
    const movies = await look({});
    if (searching === own) showFound(movies, text);
    if (movies.length || text.length < SHORTEST_ALIKE) return;
    await new Promise((done) => setTimeout(done, PAUSE_MS)); // while one goes on typing, nothing is wrong yet
    if (searching !== own) return;
    const alike = await look({ alike: true });
    if (searching === own) showFound(alike, text, "perhaps · ");
  });
}

function showFound(movies, text, before = "") {
  results = movies;
  chosen = movies.length ? 0 : -1;
  $("found").replaceChildren(
    ...movies.map((movie, number) => {
      const own = given(movie);
      return make(
        "li",
        {
          role: "option",
          id: `found-${number}`,
          onpointerdown: (event) => event.preventDefault(),
          onclick: () => pick(movie),
        },
        make("span", { class: "name" }, make("bdi", {}, shownTitle(movie))),
        make("small", {}, own === undefined ? before + factsOf(movie) : `${own} ★`),
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
  const box = row(movie).firstElementChild;
  $("picked").replaceChildren(box);
  focusOn(box.querySelector("[data-stars]"));
}

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
