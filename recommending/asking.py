"""Choose the movies whose ratings would tell most about somebody.

A person's vector p has a posterior with the covariance C = A^-1 (see `ridge_solve`), so the predictions for the movies
are unsure by the variances q_m' C q_m. With weights w that say how much each of them matters, and the movies' second
moment S = sum over m of w_m q_m q_m', the whole of it is trace(S C). A rating of movie i, which varies by the noise s^2
around its score, changes the covariance by rank one, whatever its stars (Sherman and Morrison 1950):

    C' = C - u u' / (s^2 + q_i' u),  u = C q_i,    so it takes away    gain_i = u' S u / (s^2 + q_i' u)

A movie can be rated only by who knows it. So that one is asked first whose gain, times how likely it is known, is the
largest; then C becomes C', which is the same whatever they answer, and the next one is chosen: greedily, in closed form
(an A-optimal design; MacKay 1992, "Information-based objective functions for active data selection", has the idea).
What is like an asked movie has little left to tell, and is not asked next. The members of an ensemble have covariances
of their own; their gains are averaged. How the shrinkage changes with the number of ratings is left aside.

Letters: M movies, K candidates, N of them asked, E members, D + 1 coordinates that meet a user's vector.
"""

import numpy as np

NOISE = 1.0  # variance of a rating around its score, in units of score, as the fold-in has it
CANDIDATES = 1000  # the best-known movies, among which the asked ones are


def second_moment(vectors: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return S, the mean of q_m q_m' with weights, float32 (E, D + 1, D + 1).

    Args:
        vectors: float32 (M, E, D + 1).
        weight: float (M,), not below 0; all the same where it is 0 for all.
    """
    share = weight / weight.sum() if weight.any() else np.full(len(weight), 1 / max(len(weight), 1))
    by_member = vectors.transpose(1, 2, 0)  # (E, D + 1, M)
    return (by_member * share.astype(np.float32)) @ by_member.transpose(0, 2, 1)


def best_known(number: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Return the candidates, int64 (K,): of the movies allowed, bool (M,), those with the most ratings, `number` (M,);
    equal ones keep their order."""
    candidates = np.flatnonzero(allowed)
    return candidates[np.argsort(-number[candidates], kind="stable")[:CANDIDATES]]


def choose(vectors: np.ndarray, covariance: np.ndarray, moment: np.ndarray, known: np.ndarray,
           top_n: int) -> np.ndarray:
    """Return which candidates to ask for, the one that tells most first, int64 (N,), N = min(top_n, K).

    Equal ones keep the order of the candidates.

    Args:
        vectors: of the candidates, float32 (K, E, D + 1).
        covariance: C, of what is known of the person before, float32 (E, D + 1, D + 1).
        moment: S, see `second_moment`.
        known: float (K,), how likely they know each candidate, times any constant.
        top_n: most movies to ask for.
    """
    asked = np.zeros(min(top_n, len(vectors)), np.int64)
    vectors = np.ascontiguousarray(vectors.transpose(1, 0, 2))  # (E, K, D + 1)
    shifts = vectors @ covariance  # u of each candidate, (E, K, D + 1)
    weighted = shifts @ moment  # S u
    left = np.ones(len(known), bool)
    for position in range(len(asked)):
        variance = np.einsum("ekd,ekd->ek", vectors, shifts)
        gain = np.einsum("ekd,ekd->ek", weighted, shifts) / (NOISE + variance)
        chosen = int(np.where(left, known * gain.mean(0), -np.inf).argmax())
        asked[position], left[chosen] = chosen, False
        shift, of_moment = shifts[:, chosen, None], weighted[:, chosen, None]  # (E, 1, D + 1)
        shared = (vectors @ shift.transpose(0, 2, 1)) / (NOISE + variance[:, chosen, None, None])  # (E, K, 1)
        shifts = shifts - shared * shift
        weighted = weighted - shared * of_moment
    return asked
