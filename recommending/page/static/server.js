// Questions to the server, and what the page says when there is no answer.

import { page } from "/page.js";
import { $ } from "/rows.js";

let gone = false,
  whenBack = () => {};

/** Tell what to do when a server that was gone is back. */
export const onReturn = (work) => {
  whenBack = work;
};

export const isGone = () => gone;

class Refused extends Error {}

export async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    lost();
    throw error;
  }
  if (gone) found();
  const body = await answer.json().catch((error) => {
    if (!answer.ok) return { error: `the server answers with ${answer.status}` };
    if (error.name !== "AbortError") lost(); // in the middle of the answer
    throw error;
  });
  if (!answer.ok) throw Object.assign(new Refused(body.error), { status: answer.status });
  (body.recommendations ?? []).forEach((movie) => page.known.set(String(movie.movie_id), movie));
  return body;
}

export const post = (path, body, signal) =>
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
  whenBack();
}

export function trouble(sentence) {
  $("trouble").hidden = sentence === null;
  if (sentence !== null) $("trouble").firstElementChild.textContent = sentence;
}

/** Do something that asks the server; say what it refuses. */
export async function attempt(work, say = trouble) {
  try {
    await work();
    return true;
  } catch (error) {
    if (error instanceof Refused) say(`${error.message[0].toUpperCase()}${error.message.slice(1)}.`);
    else if (error.name !== "AbortError" && !(error instanceof TypeError && gone)) throw error;
    return false;
  }
}

export const say = (text) => {
  $("live").textContent = text;
};

$("trouble").lastElementChild.addEventListener("click", () =>
  gone ? fetch("/healthz").then(found, () => {}) : whenBack(),
);
