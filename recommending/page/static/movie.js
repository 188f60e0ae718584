// One movie, over the page: its stars, why it is listed, what is like it.

import { asOf, page } from "/page.js";
import { $, count, factsOf, fill, make, row, shownTitle, signed, stars } from "/rows.js";
import { ask, attempt } from "/server.js";

const SIMILAR = 6;

let opened = null;

export async function open(movie) {
  opened = { movie: { ...movie, ...page.known.get(String(movie.movie_id)) }, like: null };
  showOpened();
  if (!$("movie").open) $("movie").showModal();
  $("movie").scrollTop = 0;
  $("movie-title").focus();
  const own = opened;
  await attempt(
    async () => {
      own.like = (
        await ask(`/api/similar/${encodeURIComponent(movie.movie_id)}?${asOf({ top_n: SIMILAR })}`)
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

/** Show what is said of the opened movie; nothing if none is. */
export function showOpened() {
  if (!opened) return;
  const { movie, like } = opened,
    id = String(movie.movie_id),
    listed = page.list.find((one) => String(one.movie_id) === id);
  $("movie-title").replaceChildren(make("bdi", {}, shownTitle(movie)));
  $("movie-facts").textContent = factsOf(movie);
  fill($("movie-stars"), [
    stars(movie),
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
        ? like.map((one) => row(one, undefined, `${factsOf(one)} · ${Math.round(100 * one.similarity)} % alike`))
        : [make("li", { class: "hint" }, "No movie is much like it.")],
  );
}

$("movie-close").addEventListener("click", () => $("movie").close());
$("movie").addEventListener("click", (event) => {
  if (event.target === $("movie")) $("movie").close();
});
