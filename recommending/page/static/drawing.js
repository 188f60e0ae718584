// The picture of the map: where a movie stands on the canvas, its dot and its title.

import { $, shownTitle } from "/rows.js";

const LABEL_AREA = 14000,
  LABEL_LETTERS = 28,
  LABELS_TRIED = 1500,
  MOST_ZOOM = 200;

export const NEAR = 14; // pixels

/**
 * Return {scene, size, showAll, zoom, nearest, draw, place}: what is drawn on a canvas, to be changed before `draw`,
 * and what moves it, finds a movie in it, draws it soon, and writes beside a movie what it is.
 */
export function pictureOn(canvas) {
  const pen = canvas.getContext("2d"),
    view = { x: 0, y: 0, scale: 0, least: 0 }, // the middle, and pixels per unit; 0 before there are movies
    scene = { movies: [], byId: new Map(), own: new Map(), listed: [], over: null, view };
  const layer = { canvas: document.createElement("canvas"), seen: "" };
  let pending = 0;

  const size = () => [canvas.clientWidth, canvas.clientHeight];
  const toScreen = (movie) => {
    const [width, height] = size();
    return [width / 2 + (movie.x - view.x) * view.scale, height / 2 - (movie.y - view.y) * view.scale];
  };

  function showAll() {
    const [width, height] = size();
    const bounds = (key) => [
      Math.min(...scene.movies.map((movie) => movie[key])),
      Math.max(...scene.movies.map((movie) => movie[key])),
    ];
    const [left, right] = bounds("x"),
      [low, high] = bounds("y");
    view.x = (left + right) / 2;
    view.y = (low + high) / 2;
    view.least = 0.92 * Math.min(width / Math.max(right - left, 1e-6), height / Math.max(high - low, 1e-6));
    view.scale = view.least;
    draw();
  }

  function zoom(factor, [x, y] = size().map((length) => length / 2)) {
    if (!view.scale) return;
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
    for (const movie of scene.movies) {
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
      most = scene.movies[0]?.num_ratings || 1,
      grown = Math.max(0.8 * Math.min(Math.sqrt(view.scale / view.least), 3), 0.8);
    onto.width = canvas.width;
    onto.height = canvas.height;
    dots.setTransform(density, 0, 0, density, 0, 0);
    dots.fillStyle = fill;
    dots.globalAlpha = 0.55;
    for (const movie of scene.movies) {
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
    if (!view.scale || !width) return;
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
    for (const movie of scene.listed.filter((one) => !scene.own.has(one.id)).reverse())
      marked(movie, 9, colour("listed"), movie.rank <= 99 ? String(movie.rank) : "");
    for (const id of scene.own.keys()) if (scene.byId.has(id)) marked(scene.byId.get(id), 7, colour("mine"), "");
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
    for (const id of scene.own.keys()) if (scene.byId.has(id)) write(scene.byId.get(id), true);
    for (const movie of scene.listed.slice(0, 10)) write(movie, true);
    for (const movie of scene.movies.slice(0, LABELS_TRIED)) {
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
    if (scene.over) place(scene.over);
  }

  function place(movie) {
    const [x, y] = toScreen(movie),
      tip = $("tip"),
      [width] = size();
    tip.hidden = false;
    const yours = scene.own.has(movie.id) ? `, your stars: ${scene.own.get(movie.id)}` : "";
    tip.textContent = `${shownTitle(movie)} (${movie.year ?? "year unknown"})${yours}`;
    tip.style.left = `${Math.max(4, Math.min(x + 10, width - tip.offsetWidth - 4))}px`;
    tip.style.top = `${Math.max(4, y - tip.offsetHeight - 10)}px`;
  }

  return { scene, size, showAll, zoom, nearest, draw, place };
}
