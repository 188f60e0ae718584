// The pieces that lists are made of: stars to give, titles, rows. Titles come from anybody's data set: they are text.

import { given, page } from "/page.js";

export const $ = (id) => document.getElementById(id);
export const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

const CONTROL = /[\p{Cc}\p{Cf}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/gu;
const LONGEST = 300;
const COARSE = matchMedia("(pointer: coarse)"); // half a star is too small for a finger

/** Return a title as it is shown: what steers a text or breaks its line is left out, a very long one is cut. */
export function shownTitle(movie) {
  const text = [...String(movie.title).replace(CONTROL, " ").trim()];
  return text.length > LONGEST
    ? `${text.slice(0, LONGEST).join("")} …`
    : text.join("") || `untitled, movie ${movie.movie_id}`;
}

/** Make an element with attributes, event listeners ("onclick") and children, which are elements or text. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false)
      element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

export function starIcon(half = null) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", half === null ? "0 0 24 24" : half ? "0 0 12 24" : "12 0 12 24");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", "#star");
  use.setAttribute("width", "24");
  use.setAttribute("height", "24");
  svg.append(use);
  return svg;
}

/** Return all stars of a scale, from the lowest to the highest. */
export function scaleOf(facts) {
  const [low, high] = facts.stars_range,
    step = facts.stars_step;
  return Array.from({ length: Math.round((high - low) / step) + 1 }, (_, number) => +(low + number * step).toFixed(6));
}

/**
 * Stars to give to a movie. One stop of the Tab key: arrows move among them, Enter or a click gives, so does a digit;
 * Delete takes back. A long scale is a list to choose from.
 */
export function stars(movie, own = given(movie)) {
  const facts = page.facts,
    give = (value) => page.give(movie, value);
  const scale = scaleOf(facts),
    title = shownTitle(movie);
  const group = make("div", { class: "stars", role: "group", "aria-label": `Your stars for ${title.slice(0, 120)}` });
  group.dataset.stars = movie.movie_id;
  const half = scale[0] === 0.5 && facts.stars_step === 0.5 && scale.length <= 10 && !COARSE.matches;
  if ((scale.length > 5 && !half) || scale[0] <= 0) {
    const select = make(
      "select",
      {
        "aria-label": `Your stars for ${title.slice(0, 120)}`,
        onchange: () => give(select.value === "" ? null : +select.value),
      },
      make("option", { value: "" }, "rate"),
      ...scale.map((value) => make("option", { value }, String(value))),
    );
    select.value = own ?? "";
    group.append(select);
    return group;
  }
  group.classList.toggle("half", half);
  group.classList.toggle("given", own !== undefined);
  const buttons = scale.map((value) => {
    const button = make(
      "button",
      {
        class: "star",
        type: "button",
        "aria-label": value === 1 ? "1 star" : `${value} stars`,
        "aria-pressed": String(value === own),
        onclick: () => give(value),
      },
      starIcon(half ? value % 1 !== 0 : null),
    );
    button.classList.toggle("on", own !== undefined && value <= own);
    button.tabIndex = -1;
    return button;
  });
  const none = make(
    "button",
    { class: "none", type: "button", "aria-label": "Take back", tabindex: -1, onclick: () => give(null) },
    "✕",
  );
  buttons[Math.max(0, scale.indexOf(own))].tabIndex = 0;
  group.append(...buttons, none);
  group.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const all = own === undefined ? buttons : [...buttons, none];
    const at = all.indexOf(document.activeElement);
    const to = {
      ArrowRight: at + 1,
      ArrowUp: at + 1,
      ArrowLeft: at - 1,
      ArrowDown: at - 1,
      Home: 0,
      End: buttons.length - 1,
    }[event.key];
    if (to !== undefined) all[Math.min(Math.max(to, 0), all.length - 1)].focus();
    else if (/^[0-9]$/.test(event.key) && scale.includes(+event.key)) give(+event.key);
    else if ((event.key === "Delete" || event.key === "Backspace") && own !== undefined) give(null);
    else return;
    event.preventDefault();
  });
  return group;
}

/** A movie's title, which opens it, and a line of facts under it. */
export function name(movie, said) {
  const title = make("button", { type: "button", onclick: () => page.open(movie) }, make("bdi", {}, shownTitle(movie)));
  title.dataset.title = movie.movie_id;
  return make("div", { class: "name" }, title, make("small", {}, said ?? factsOf(movie)));
}

export const factsOf = (movie) =>
  [movie.year ?? "year unknown", ...(movie.num_ratings === undefined ? [] : [count(movie.num_ratings, "rating")])].join(
    " · ",
  );

/** A row: title and facts at the left, stars to give at the right. */
export function row(movie, own = given(movie), said = undefined) {
  return make("li", {}, make("div", { class: "row" }, name(movie, said), stars(movie, own)));
}

/** Predicted stars, drawn as a fraction of five, where a scale has as many or fewer; between which 8 of 10 such lie. */
export function score(value, interval) {
  const [low, high] = page.facts.stars_range;
  const box = make("div", { class: "score" });
  if (low >= 0 && high <= 5) {
    const five = () => Array.from({ length: Math.ceil(high) }, () => starIcon());
    const full = make("span", {}, ...five());
    full.style.width = `${(100 * Math.max(value, 0)) / Math.ceil(high)}%`;
    box.append(make("div", { class: "bar5", "aria-hidden": "true" }, make("span", {}, ...five()), full));
  }
  box.append(
    make("span", { class: "sr" }, "predicted "),
    make("span", {}, value.toFixed(2)),
    make("span", { class: "sr" }, " stars"),
  );
  if (interval)
    box.append(
      make("span", { class: "sr" }, ", of ten such ratings eight lie from "),
      make(
        "span",
        { class: "hint", title: "of ten such ratings eight lie between these" },
        `${interval[0].toFixed(1)}–${interval[1].toFixed(1)}`,
      ),
    );
  return box;
}

/** Why a movie is listed: the ratings that raised its score most, with their exact effects. */
export function because(reasons) {
  const text = make("p", { class: "because" });
  if (!reasons?.length) return text;
  text.append("because you gave ");
  reasons.forEach((reason, number) =>
    text.append(
      number ? "; " : "",
      `${reason.stars} to `,
      make("bdi", {}, shownTitle(reason)),
      " ",
      make("b", {}, signed(reason.effect)),
    ),
  );
  return text;
}

export const signed = (effect) => `${effect < 0 ? "−" : "+"}${Math.abs(effect).toFixed(2)}`;

/** Put new rows into a list; what has the focus keeps it, or hands it to what took its place. */
export function fill(list, rows) {
  const active = document.activeElement,
    inside = list.contains(active);
  const place = inside ? [...list.children].findIndex((item) => item.contains(active)) : -1;
  const stars = inside ? active.closest("[data-stars]")?.dataset.stars : undefined,
    title = inside ? active.dataset.title : undefined;
  list.replaceChildren(...rows);
  if (!inside) return;
  const same = [...list.querySelectorAll("[data-stars], [data-title]")].find((part) =>
    stars === undefined ? part.dataset.title === title : part.dataset.stars === stars,
  );
  const item =
    same ??
    list.children[Math.min(place, list.children.length - 1)]?.querySelector(
      stars === undefined ? "[data-title]" : "[data-stars]",
    );
  focusOn(item ?? list.parentElement.querySelector("h2"));
}

/** Focus an element, or the star of a group that the Tab key would reach. */
export function focusOn(element) {
  (element?.matches("[data-stars]") ? element.querySelector("[tabindex='0'], select") : element)?.focus({
    preventScroll: true,
  });
}
