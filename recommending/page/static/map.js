// All movies on two axes: near ones are alike. Drawn on a canvas; the lists say the same to those who do not see it.

import { page } from "/page.js";
import { $, shownTitle } from "/rows.js";
import { ask } from "/server.js";

const LABEL_AREA = 14000,
  LABEL_LETTERS = 28,
  LABELS_TRIED = 1500,
  NEAR = 14,
  MOST_ZOOM = 200;

/** Return {load, mark, draw}: fetch the movies, mark a person's own and listed ones, draw again. */
function showMap() {
  const canvas = $("canvas"),
    pen = canvas.getContext("2d");
  let movies = [],
    byId = new Map(),
    own = new Map(),
    listed = [],
    view = null,
    over = null,
    pending = 0,
    state = "none";
  const layer = { canvas: document.createElement("canvas"), seen: "" };
  const pointers = new Map();
  let moved = 0;

  const size = () => [canvas.clientWidth, canvas.clientHeight];
  const toScreen = (movie) => {
    const [width, height] = size();
    return [width / 2 + (movie.x - view.x) * view.scale, height / 2 - (movie.y - view.y) * view.scale];
  };

  function showAll() {
    const [width, height] = size();
    const bounds = (key) => [
      Math.min(...movies.map((movie) => movie[key])),
      Math.max(...movies.map((movie) => movie[key])),
    ];
    const [left, right] = bounds("x"),
      [low, high] = bounds("y");
    view = {
      x: (left + right) / 2,
      y: (low + high) / 2,
      scale: 0.92 * Math.min(width / Math.max(right - left, 1e-6), height / Math.max(high - low, 1e-6)),
    };
    view.least = view.scale;
    draw();
  }

  function zoom(factor, [x, y] = size().map((length) => length / 2)) {
    if (!view) return;
    const [width, height] = size(),
      before = view.scale;
    view.scale = Math.min(Math.max(before * factor, view.least / 2), view.least * MOST_ZOOM);
    view.x += (x - width / 2) * (1 / before - 1 / view.scale);
    view.y -= (y - height / 2) * (1 / before - 1 / view.scale);
    draw();
  }

  function nearest([x, y], within) {
    let best = null,
      least = within ** 2;
    for (const movie of movies) {
      const [across, down] = toScreen(movie),
        distance = (across - x) ** 2 + (down - y) ** 2;
      if (distance <= least) {
        least = distance;
        best = movie;
      }
    }
    return best;
  }

  function draw() {
    pending ||= requestAnimationFrame(() => {
      pending = 0;
      paint();
    });
  }

  /** Draw all movies; the picture is kept as long as nothing moves, for stars change more often. */
  function paintDots(onto, fill, density) {
    const [width, height] = size(),
      dots = onto.getContext("2d"),
      most = movies[0]?.num_ratings || 1,
      grown = Math.max(0.8 * Math.min(Math.sqrt(view.scale / view.least), 3), 0.8);
    onto.width = canvas.width;
    onto.height = canvas.height;
    dots.setTransform(density, 0, 0, density, 0, 0);
    dots.fillStyle = fill;
    dots.globalAlpha = 0.55;
    for (const movie of movies) {
      const [x, y] = toScreen(movie),
        radius = (1.2 + 4 * Math.sqrt(movie.num_ratings / most)) * grown;
      if (x < -radius || y < -radius || x > width + radius || y > height + radius) continue;
      if (radius < 1.6) {
        dots.fillRect(x - radius * 0.9, y - radius * 0.9, radius * 1.8, radius * 1.8);
      } else {
        dots.beginPath();
        dots.arc(x, y, radius, 0, 7);
        dots.fill();
      }
    }
  }

  function paint() {
    const [width, height] = size(),
      density = devicePixelRatio || 1;
    if (!view || !width) return;
    if (canvas.width !== Math.round(width * density) || canvas.height !== Math.round(height * density)) {
      canvas.width = Math.round(width * density);
      canvas.height = Math.round(height * density);
    }
    const style = getComputedStyle(document.documentElement),
      colour = (key) => style.getPropertyValue(`--${key}`).trim();
    pen.setTransform(density, 0, 0, density, 0, 0);
    pen.clearRect(0, 0, width, height);
    const dot = (movie, radius) => {
      const [x, y] = toScreen(movie);
      if (x < -20 || y < -20 || x > width + 20 || y > height + 20) return;
      pen.moveTo(x + radius, y);
      pen.arc(x, y, radius, 0, 7);
    };
    const seen = [view.x, view.y, view.scale, canvas.width, canvas.height, colour("dot")].join();
    if (seen !== layer.seen) {
      layer.seen = seen;
      paintDots(layer.canvas, colour("dot"), density);
    }
    pen.drawImage(layer.canvas, 0, 0, width, height);
    const taken = [],
      halo = colour("card");
    pen.font = "12px system-ui, sans-serif";
    pen.textBaseline = "middle";
    const marked = (movie, radius, fill, text) => {
      pen.beginPath();
      dot(movie, radius);
      pen.fillStyle = fill;
      pen.strokeStyle = halo;
      pen.lineWidth = 2;
      pen.stroke();
      pen.fill();
      const [x, y] = toScreen(movie);
      taken.push([x - radius, y - radius, x + radius, y + radius]);
      if (text) {
        pen.fillStyle = halo;
        pen.textAlign = "center";
        pen.fillText(text, x, y + 0.5);
      }
    };
    for (const movie of listed.filter((one) => !own.has(one.id)).reverse())
      marked(movie, 9, colour("listed"), movie.rank <= 99 ? String(movie.rank) : "");
    for (const id of own.keys()) if (byId.has(id)) marked(byId.get(id), 7, colour("mine"), "");
    pen.textAlign = "left";
    let shown = 0;
    const write = (movie, strong) => {
      const [x, y] = toScreen(movie);
      if (x < 0 || y < 8 || x > width || y > height - 8) return;
      if (movie.label === undefined) {
        const letters = [...shownTitle(movie)];
        const long = letters.length > LABEL_LETTERS;
        movie.label = long ? `${letters.slice(0, LABEL_LETTERS - 1).join("")}…` : letters.join("");
        movie.labelWidth = pen.measureText(movie.label).width;
      }
      const text = movie.label,
        length = movie.labelWidth,
        gap = strong ? 12 : 7;
      const begin = x + gap + length > width - 2 ? x - gap - length : x + gap;
      const box = [begin - 1, y - 8, begin + length + 1, y + 8];
      if (
        begin < 0 ||
        taken.some(([left, top, right, bottom]) => left < box[2] && box[0] < right && top < box[3] && box[1] < bottom)
      )
        return;
      taken.push(box);
      pen.lineWidth = 3;
      pen.strokeStyle = halo;
      pen.strokeText(text, begin, y);
      pen.fillStyle = colour(strong ? "text" : "soft");
      pen.fillText(text, begin, y);
      shown += 1;
    };
    for (const id of own.keys()) if (byId.has(id)) write(byId.get(id), true);
    for (const movie of listed.slice(0, 10)) write(movie, true);
    for (const movie of movies.slice(0, LABELS_TRIED)) {
      if (shown >= (width * height) / LABEL_AREA) break;
      write(movie, false);
    }
    if (document.activeElement === canvas && canvas.matches(":focus-visible")) {
      pen.strokeStyle = colour("accent");
      pen.lineWidth = 1.5;
      pen.beginPath();
      pen.arc(width / 2, height / 2, NEAR, 0, 7);
      pen.stroke();
    }
    if (over) place(over);
  }

  function place(movie) {
    const [x, y] = toScreen(movie),
      tip = $("tip"),
      [width] = size();
    tip.hidden = false;
    const yours = own.has(movie.id) ? `, your stars: ${own.get(movie.id)}` : "";
    tip.textContent = `${shownTitle(movie)} (${movie.year ?? "year unknown"})${yours}`;
    tip.style.left = `${Math.max(4, Math.min(x + 10, width - tip.offsetWidth - 4))}px`;
    tip.style.top = `${Math.max(4, y - tip.offsetHeight - 10)}px`;
  }

  function hover(movie) {
    if (movie === over) return;
    over = movie;
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
    if (!view) return;
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
    if (!view || !alone || moved > 6 || event.type === "pointercancel") return;
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
    if (!view || event.ctrlKey || event.altKey || event.metaKey) return;
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
    over = middle();
    draw();
    if (over) $("map-middle").textContent = `In the middle: ${shownTitle(over)}`;
  });
  canvas.addEventListener("focus", draw);
  canvas.addEventListener("blur", () => {
    hover(null);
    draw();
  });
  $("zoom-in").addEventListener("click", () => zoom(1.5));
  $("zoom-out").addEventListener("click", () => zoom(1 / 1.5));
  $("zoom-all").addEventListener("click", () => {
    if (movies.length) showAll();
  });
  new ResizeObserver(() => {
    if (movies.length && !view) showAll();
    draw();
  }).observe(canvas);

  return {
    draw,
    mark(ratings, rows) {
      own = ratings;
      listed = rows.flatMap((movie) =>
        byId.has(String(movie.movie_id)) ? [{ ...byId.get(String(movie.movie_id)), rank: movie.rank }] : [],
      );
      this.rows = rows;
      setTimeout(draw); // the list comes first
    },
    async load() {
      if (state !== "none") return;
      state = "loading";
      try {
        const body = await ask("/api/map");
        movies = body.movies
          .map((movie) => ({ ...movie, id: String(movie.movie_id) }))
          .sort((one, other) => other.num_ratings - one.num_ratings);
        byId = new Map(movies.map((movie) => [movie.id, movie]));
        state = "shown";
        $("map-said").hidden = true;
        const [first, second] = body.variance.map((part) => `${Math.round(100 * part)} %`);
        canvas.setAttribute(
          "aria-label",
          `Map of ${movies.length.toLocaleString("en")} movies; ` +
            `its axes have ${first} and ${second} of how they differ`,
        );
        if (canvas.clientWidth) showAll();
        this.mark(own, this.rows ?? []);
      } catch (error) {
        state = "none";
        $("map-said").textContent = error.status === 409 ? `No map: ${error.message}.` : "The map is not there yet.";
        if (error.status !== 409 && !(error instanceof TypeError)) throw error;
      }
    },
  };
}

export const map = showMap();
