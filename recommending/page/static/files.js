// One's ratings as a table: written here, read by the server, which reads what other services export, too.

import { page } from "/page.js";
import { $, count, make } from "/rows.js";
import { ask, attempt } from "/server.js";

/** A title for a table: none where a program that opens it might obey, or a reader stumble; the id says which movie. */
const forTable = (title) =>
  /^[=+\-@\s]|[\p{C}]/u.test(title) || title.length > 200 ? "" : `"${title.replaceAll('"', '""')}"`;

export function exportFile() {
  const lines = [...page.state.ratings].map(([id, given]) => {
    const movie = page.known.get(id);
    const own = /^\d+$/.test(id) ? id : `"${id.replaceAll('"', '""')}"`;
    return [own, movie ? forTable(movie.title) : "", movie?.year ?? "", given].join(",");
  });
  const address = URL.createObjectURL(
    new Blob([`movie_id,title,year,stars\n${lines.join("\n")}\n`], { type: "text/csv" }),
  );
  make("a", { href: address, download: "ratings.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

/** Read a file; `add` takes its ratings, {movie_id: stars}. */
export async function importFile(file, add) {
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
    said([`${count(Object.keys(body.ratings).length, "rating")} read.`, ...body.remarks].join(" ").slice(0, 600));
    await add(body.ratings);
  }, said);
}
