// What all parts of the page share.

export const FIRST = 10; // movies of a list, until more are asked for
export const MOST = 200;
export const EMPTY = {
  ratings: new Map(),
  rank_by: "rating",
  top_n: FIRST,
  year_from: "",
  year_to: "",
  min_ratings: "",
  title: "",
  user: "",
  date: "",
  seen: false,
};

export const page = {
  facts: null, // of the data set
  state: { ...EMPTY, ratings: new Map() }, // what a person has typed; stars by the text of a movie's id
  known: new Map(), // movies that have been listed, by the text of their id
  list: [], // rows of the person's list
  give: null, // (movie, stars or null): what a star does
  open: null, // (movie): what a title does
};

/** Return the stars that a movie has been given; undefined without any. */
export const given = (movie) => page.state.ratings.get(String(movie.movie_id));

/** Write the end of an address, with the date that is asked about. */
export const asOf = (parts) => new URLSearchParams({ ...parts, ...(page.state.date ? { date: page.state.date } : {}) });

/** Return who asks, as the API takes it. */
export const person = () => ({
  ratings: Object.fromEntries(page.state.ratings),
  ...(page.state.user ? { user_id: page.state.user } : {}),
  ...(page.state.date ? { date: page.state.date } : {}),
});
