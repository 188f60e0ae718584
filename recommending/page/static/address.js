// What a person types, in the page's address, which a link brings back, and in the browser's storage.

import { EMPTY, FIRST, MOST, page } from "/page.js";

export const TYPED = ["user", "title", "year_from", "year_to", "min_ratings", "date"];

function asAddress() {
  const parts = new URLSearchParams();
  if (page.state.ratings.size)
    parts.set("ratings", [...page.state.ratings].map(([id, given]) => `${encodeURIComponent(id)}:${given}`).join(","));
  for (const key of TYPED) if (page.state[key] !== "") parts.set(key, page.state[key]);
  if (page.state.rank_by !== EMPTY.rank_by) parts.set("rank_by", page.state.rank_by);
  if (page.state.top_n !== FIRST) parts.set("top_n", page.state.top_n);
  if (page.state.seen) parts.set("seen", "1");
  return parts.toString().replaceAll("%3A", ":").replaceAll("%2C", ","); // those of an id are encoded twice
}

export function fromAddress(text) {
  const parts = new URLSearchParams(text),
    read = { ...EMPTY, ratings: new Map() };
  for (const pair of (parts.get("ratings") ?? "").split(",").slice(0, page.facts.most_ratings)) {
    const at = pair.lastIndexOf(":");
    let id;
    try {
      id = decodeURIComponent(pair.slice(0, at));
    } catch {
      continue;
    }
    const given = Number(pair.slice(at + 1));
    if (at > 0 && id.length <= 500 && given >= page.facts.stars_range[0] && given <= page.facts.stars_range[1])
      read.ratings.set(id, given);
  }
  for (const key of TYPED) read[key] = (parts.get(key) ?? "").slice(0, 500);
  if (page.facts.can_rank_by.includes(parts.get("rank_by"))) read.rank_by = parts.get("rank_by");
  read.top_n = Math.min(Math.max(Math.trunc(Number(parts.get("top_n"))) || FIRST, 1), MOST);
  read.seen = parts.get("seen") === "1";
  return read;
}

const place = () => `two towers ${page.facts.data_set}`;

export function keep() {
  const text = asAddress();
  history.replaceState(null, "", text ? `#${text}` : location.pathname);
  try {
    localStorage.setItem(place(), text);
  } catch {
    /* a browser may forbid storage: the address remains */
  }
}

export function stored() {
  try {
    return localStorage.getItem(place()) ?? "";
  } catch {
    return "";
  }
}
