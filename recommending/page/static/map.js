// All movies on two axes: near ones are alike. Drawn on a canvas; the lists say the same to those who do not see it.

import { NEAR, pictureOn } from "/drawing.js";
import { page } from "/page.js";
import { $, shownTitle } from "/rows.js";
import { ask } from "/server.js";

/** Return {load, mark, draw}: fetch the movies, mark a person's own and listed ones, draw again. */
function showMap() {
  const canvas = $("canvas"),
    { scene, size, showAll, zoom, nearest, draw, place } = pictureOn(canvas),
    { view } = scene;
  const pointers = new Map();
  let moved = 0,
    state = "none";

  function hover(movie) {
    if (movie === scene.over) return;
    scene.over = movie;
    $("tip").hidden = !movie;
    canvas.style.cursor = movie ? "pointer" : "grab";
    if (movie) place(movie);
  }

  const at = (event) => [event.offsetX, event.offsetY];
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, at(event));
    if (pointers.size === 1) moved = 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!view.scale) return;
    const last = pointers.get(event.pointerId),
      now = at(event);
    if (!last) return hover(nearest(now, NEAR));
    moved += Math.abs(now[0] - last[0]) + Math.abs(now[1] - last[1]);
    if (pointers.size === 1) {
      view.x -= (now[0] - last[0]) / view.scale;
      view.y += (now[1] - last[1]) / view.scale;
    } else {
      const [other] = [...pointers].find(([id]) => id !== event.pointerId)
        ? [...pointers].filter(([id]) => id !== event.pointerId).map(([, where]) => where)
        : [];
      const apart = (one) => Math.hypot(one[0] - other[0], one[1] - other[1]);
      zoom(apart(now) / Math.max(apart(last), 1), other);
    }
    pointers.set(event.pointerId, now);
    draw();
  });
  const up = (event) => {
    const alone = pointers.size === 1 && pointers.has(event.pointerId);
    pointers.delete(event.pointerId);
    if (!view.scale || !alone || moved > 6 || event.type === "pointercancel") return;
    const movie = nearest(at(event), NEAR + 4);
    if (movie) page.open(movie);
  };
  canvas.addEventListener("pointerup", up);
  canvas.addEventListener("pointercancel", up);
  canvas.addEventListener("pointerleave", () => hover(null));
  canvas.addEventListener(
    "wheel",
    (event) => {
      const beside = getComputedStyle($("map")).position === "sticky"; // else a wheel over it scrolls the page
      if (!beside && !event.ctrlKey && document.activeElement !== canvas) return;
      event.preventDefault();
      zoom(Math.exp(-event.deltaY / 400), at(event));
    },
    { passive: false },
  );
  canvas.addEventListener("keydown", (event) => {
    if (!view.scale || event.ctrlKey || event.altKey || event.metaKey) return;
    const step = 60 / view.scale;
    const [across, up] = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] }[
      event.key
    ] ?? [0, 0];
    const middle = () =>
      nearest(
        size().map((length) => length / 2),
        1e6,
      );
    if (across || up) {
      view.x += across;
      view.y += up;
      draw();
    } else if (event.key === "+" || event.key === "=") zoom(1.4);
    else if (event.key === "-") zoom(1 / 1.4);
    else if (event.key === "Enter" || event.key === " ") {
      if (middle()) page.open(middle());
    } else return;
    event.preventDefault();
    scene.over = middle();
    draw();
    if (scene.over) $("map-middle").textContent = `In the middle: ${shownTitle(scene.over)}`;
  });
  canvas.addEventListener("focus", draw);
  canvas.addEventListener("blur", () => {
    hover(null);
    draw();
  });
  $("zoom-in").addEventListener("click", () => zoom(1.5));
  $("zoom-out").addEventListener("click", () => zoom(1 / 1.5));
  $("zoom-all").addEventListener("click", () => {
    if (scene.movies.length) showAll();
  });
  new ResizeObserver(() => {
    if (scene.movies.length && !view.scale) showAll();
    draw();
  }).observe(canvas);

  return {
    draw,
    mark(ratings, rows) {
      scene.own = ratings;
      scene.listed = rows.flatMap((movie) =>
        scene.byId.has(String(movie.movie_id)) ? [{ ...scene.byId.get(String(movie.movie_id)), rank: movie.rank }] : [],
      );
      this.rows = rows;
      setTimeout(draw); // the list comes first
    },
    async load() {
      if (state !== "none") return;
      state = "loading";
      try {
        const body = await ask("/api/map");
        scene.movies = body.movies
          .map((movie) => ({ ...movie, id: String(movie.movie_id) }))
          .sort((one, other) => other.num_ratings - one.num_ratings);
        scene.byId = new Map(scene.movies.map((movie) => [movie.id, movie]));
        state = "shown";
        $("map-said").hidden = true;
        const [first, second] = body.variance.map((part) => `${Math.round(100 * part)} %`);
        canvas.setAttribute(
          "aria-label",
          `Map of ${scene.movies.length.toLocaleString("en")} movies; ` +
            `its axes have ${first} and ${second} of how they differ`,
        );
        if (canvas.clientWidth) showAll();
        this.mark(scene.own, this.rows ?? []);
      } catch (error) {
        state = "none";
        $("map-said").textContent = error.status === 409 ? `No map: ${error.message}.` : "The map is not there yet.";
        if (error.status !== 409 && !(error instanceof TypeError)) throw error;
      }
    },
  };
}

export const map = showMap();
