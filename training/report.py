"""What a run leaves for people: metrics.csv, training.png, the table of test results and test_metrics.json.

In a notebook, `read_metrics("runs/default").plot(x="epoch", y=["train_rmse", "val_rmse"])` draws the curves.
"""

import csv
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from models.blend import Blend
from models.ops.ranks import ALONE, Ranks
from models.stars_link import coverage
from preprocessing.dataset import DataError, replaced
from training.baselines import Biases, fit_biases
from training.batches import DataSet, RatingTensors, uniform
from training.evaluation import predict_errors, scorer, sum_errors
from training.link import scores_and_features
from training.metrics import RatingErrors, evaluate_ranking
from training.relevance import relevance_scorer
from training.trainer import EpochMetrics

if TYPE_CHECKING:
    import pandas as pd

CALIBRATION_USERS = 2000  # are enough
COVERAGES = (50, 80, 95)  # percent
COLUMNS = ("rmse", "mae", "ndcg@10", "recall@10")
ROWS = {"global_mean": "global mean", "popularity": "popularity", "bias": "user + movie bias",
        "two_tower": "two towers", "relevance": "by relevance"}

NETFLIX_RATINGS, PROBE_RATINGS = 100_480_507, 1_408_395  # of the Netflix Prize, and of them in its probe
PUBLISHED = (("Cinematch, Netflix's own", 0.9514, "the rules of the prize"),
             ("PMF, constrained", 0.9016, "Salakhutdinov and Mnih 2008"), ("SVD, 200 factors", 0.9009, "Koren 2008"),
             ("ALS-WR, 1,000 factors", 0.8985, "Zhou et al. 2008"), ("SVD++, 200 factors", 0.8911, "Koren 2008"),
             ("timeSVD++, 200 factors", 0.8799, "Koren 2010"),
             ("the Grand Prize, hundreds of models", 0.8567, "its leaderboard, 2009"))


def write_metrics(path: Path, metrics: list[EpochMetrics]) -> None:
    """Write metrics.csv, a row per epoch, whole or not at all."""
    with replaced(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(EpochMetrics.__dataclass_fields__))
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" if isinstance(value, float) else value
                          for name, value in vars(row).items()} for row in metrics)


def read_metrics(run_dir: str | Path) -> "pd.DataFrame":
    """Return metrics.csv of a run as a DataFrame, a row per epoch; `EpochMetrics` says what its columns are.

    Raises:
        DataError: the run has none, or it is not what `write_metrics` wrote.
    """
    import pandas as pd  # half a second, so only where a table is read

    path, command = Path(run_dir) / "metrics.csv", f"python main.py --run_dir {run_dir}"
    types = {name: "int64" if name == "epoch" else "float64" for name in EpochMetrics.__dataclass_fields__}
    try:
        return pd.read_csv(path, encoding="utf-8")[list(types)].astype(types)
    except FileNotFoundError:
        raise DataError(f"{path} not found; run: {command}") from None
    except (ValueError, KeyError):  # no header, or other columns; or words where numbers should be
        raise DataError(f"{path} is not what main.py wrote; run: {command} --overwrite") from None


def plot_training(path: Path, metrics: list[EpochMetrics], best_epoch: int, baselines: dict[str, float]) -> None:
    """Draw train and validation RMSE by epoch, the chosen epoch, and the baselines' validation RMSE as lines; of those
    that lie far above, the legend alone tells."""
    import matplotlib  # costs half a second, so only where a picture is drawn

    matplotlib.use("Agg")
    from matplotlib import pyplot

    epochs = [row.epoch for row in metrics]
    figure, axes = pyplot.subplots(figsize=(8, 4.8), layout="constrained")
    axes.plot(epochs, [row.train_rmse for row in metrics], "o-", ms=3, color="tab:gray",
              label="train (a random part of the ratings as context)")
    axes.plot(epochs, [row.val_rmse for row in metrics], "o-", ms=3, color="tab:blue", label="validation")
    for (name, rmse), style in zip(baselines.items(), ("--", ":"), strict=False):
        axes.axhline(rmse, ls=style, color="tab:red", lw=1, label=f"{name}, validation: {rmse:.4f}")
    best = metrics[best_epoch - 1]
    if math.isfinite(best.val_rmse):
        axes.plot(best.epoch, best.val_rmse, "*", ms=13, color="tab:orange",
                  label=f"chosen: epoch {best.epoch}, validation {best.val_rmse:.4f}")
    drawn = [value for row in metrics for value in (row.train_rmse, row.val_rmse) if math.isfinite(value)]
    drawn += sorted(baselines.values())[:1]
    axes.set_ylim(top=max(drawn) + 0.05 * (max(drawn) - min(drawn)) + 1e-3)
    axes.set(xlabel="epoch", ylabel="RMSE (stars)", title="Two towers: RMSE by epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
    with replaced(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
    pyplot.close(figure)


def validation_baselines(data: DataSet, ranks: Ranks = ALONE) -> dict[str, float]:
    """Return the validation RMSE of the global mean and of the biases, over all ranks."""
    if not data.meta["split"]["num_validation"]:
        return {}
    biases = fit_biases(data.train, data.num_movies, data.meta["stars_step"], ranks)
    constant = replace(biases, user=torch.zeros_like(biases.user), movie=torch.zeros_like(biases.movie))
    return {"global mean": bias_errors(constant, data.validation, data, ranks).rmse,
            "user + movie bias": bias_errors(biases, data.validation, data, ranks).rmse}


def test_results(model: Blend, data: DataSet, ranks: Ranks = ALONE) -> dict[str, dict[str, float | None]]:
    """Measure the towers and the baselines on the test split: {"two_tower": {"rmse": .., ..}, "bias": .., ..}. Each
    rank measures its own users, and has the sums of all.

    A value is None where it has no meaning: the global mean ranks nothing, popularity predicts no stars.
    """
    device, step = model.device, data.meta["stars_step"]
    biases = fit_biases(data.train, data.num_movies, step, ranks)
    constant = replace(biases, user=torch.zeros_like(biases.user), movie=torch.zeros_like(biases.movie))
    train = data.train.to(device)
    popularity = torch.tensor(data.movies.num_train_ratings).float()
    seen, recommendable = [data.train, data.validation], popularity > 0

    by_relevance = relevance_scorer(model, train, step, data.last_day)

    def ranking(score_users: Callable[[torch.Tensor], torch.Tensor],
                where: torch.device | str = "cpu") -> dict[str, float]:
        return evaluate_ranking(score_users, seen, data.test, recommendable.to(where), stars_step=step,
                                stars_range=data.meta["stars_range"], ranks=ranks)

    return {name: {column: values.get(column) for column in COLUMNS} for name, values in {
        "global_mean": _ratings(bias_errors(constant, data.test, data, ranks)),
        "popularity": ranking(lambda users: popularity.expand(len(users), -1).clone()),
        "bias": {**_ratings(bias_errors(biases, data.test, data, ranks)),
                 **ranking(lambda users: biases.movie.expand(len(users), -1).clone())},
        "two_tower": {**_ratings(predict_errors(model, train, data.test.to(device), step, ranks)),
                      **ranking(scorer(model, train, step, data.last_day), device)},
        **({} if by_relevance is None else {"relevance": ranking(by_relevance, device)}),
    }.items()}


@torch.no_grad()
def calibration(model: Blend, data: DataSet, ranks: Ranks = ALONE) -> dict[str, float]:
    """Measure what the model says of how sure it is, on the test ratings of CALIBRATION_USERS drawn users of all ranks.

    Returns:
        "log_likelihood", the mean of a rating, by the natural logarithm; "coverage_50" and so on for COVERAGES, the
        fraction of ratings in the intervals that should have so many percent of them. nan without ratings.
    """
    train, test = data.train.to(model.device), data.test.to(model.device)
    users = test.rated_users()
    num_users = torch.tensor(float(len(users)), device=model.device)
    ranks.sum_(num_users)
    users = users[uniform(3, users) < CALIBRATION_USERS / max(float(num_users), 1)]
    score, stars, features = scores_and_features(model, train, test, users, data.meta["stars_step"])
    of_ratings = how_sure(model.link.probabilities(score, features).double(), model.link.position_of(stars))
    num_ratings = torch.tensor(float(len(stars)), dtype=torch.float64, device=model.device)
    sums = torch.stack([num_ratings, *(values.sum() for values in of_ratings.values())])
    ranks.sum_(sums)
    return dict(zip(of_ratings, (sums[1:] / sums[0]).tolist(), strict=True))


def how_sure(probabilities: torch.Tensor, position: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what `calibration` takes the means of, float64 (T,) each.

    Args:
        probabilities: of all stars, float64 (T, K + 1).
        position: int64 (T,), of the stars that were given.
    """
    own = probabilities.gather(1, position.unsqueeze(1)).squeeze(1).clamp(min=1e-12).log()
    return {"log_likelihood": own,
            **{f"coverage_{percent}": coverage(probabilities, position, percent / 100) for percent in COVERAGES}}


def format_calibration(measured: dict[str, float]) -> str:
    """Return what `calibration` measured as a sentence; "" where there was nothing to measure."""
    if math.isnan(measured["log_likelihood"]):
        return ""
    found = _listed(f"{100 * measured[f'coverage_{percent}']:.1f}" for percent in COVERAGES)
    return (f"within their {_listed(COVERAGES)} % intervals: {found} % of the ratings; "
            f"log-likelihood {measured['log_likelihood']:.4f} a rating")


def format_table(results: dict[str, dict[str, float | None]]) -> str:
    """Return the results as a table of text."""
    lines = [f"{'':<18}" + "".join(f"{column.upper():>11}" for column in COLUMNS)]
    for name in results:
        cells = ("-" if value is None or math.isnan(value) else f"{value:.4f}" for value in results[name].values())
        lines.append(f"{ROWS[name]:<18}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)


def published(meta: dict) -> str:
    """Return what others have reached on Netflix's probe, as a table of text; "" for every other data set or split."""
    split = meta["split"]
    sizes = [split[f"num_{name}"] for name in ("train", "validation", "test")]
    if split["method"] != "probe" or (sum(sizes), sizes[-1]) != (NETFLIX_RATINGS, PROBE_RATINGS):
        return ""
    rows = [f"{model:<37}{rmse:.4f}  {source}" for model, rmse, source in PUBLISHED]
    return "\n".join(["published RMSE on the probe, or on the quiz or test set, which are alike:", *rows])


def write_test_metrics(path: Path, results: dict) -> None:
    """Write test_metrics.json; a measure over no ratings or no users is null."""
    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    with replaced(path) as partial:
        partial.write_text(json.dumps(plain(results), indent=2) + "\n", encoding="utf-8")


def bias_errors(biases: Biases, asked: RatingTensors, data: DataSet, ranks: Ranks = ALONE) -> RatingErrors:
    """Sum the errors of a bias model over ratings of all ranks, its predictions cut to the scale, as anybody would."""
    low, high = data.meta["stars_range"]
    predicted = biases.predict(asked.user_idx(), asked.movie_idx).clamp_(low, high)
    return sum_errors(predicted, asked.stars.float() * data.meta["stars_step"], ranks)


def _listed(values: Iterable[object]) -> str:
    """Return values as in "1, 2 and 3"."""
    *most, last = map(str, values)
    return f"{', '.join(most)} and {last}"


def _ratings(errors: RatingErrors) -> dict[str, float]:
    return {"rmse": errors.rmse, "mae": errors.mae}
