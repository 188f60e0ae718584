"""What fixes the shapes and the scale of a model, and the parts that can be left out of it."""

from dataclasses import dataclass, field
from typing import Any

PARTS = ("user_embedding", "pooled_history", "solved_history", "user_features", "year", "movie_features",
         "biases", "drift", "mood")
OF_DATES = ("drift", "mood")  # see models/temporal.py


def flag(default: object, text: str) -> Any:
    """Return the field of a dataclass that main.py makes a flag of, with this help text."""
    return field(default=default, metadata={"help": text})


@dataclass
class ModelConfig:
    """Everything that fixes the shapes and the scale of a model; saved with it."""

    num_users: int
    num_movies: int
    num_days: int  # of the data set
    stars_low: float
    stars_high: float
    stars_mean: float  # of the training ratings
    embedding_dim: int = flag(128, "coordinates of a user or movie vector, over all heads")  # H * D
    num_heads: int = flag(4, "models in one that the coordinates are divided among; halves of an even number see "
                          "context and targets swapped, and err less together")
    hidden_dim: int = flag(128, "hidden units of each tower's MLP")
    user_dim: int = 16  # user embedding
    pooled_dim: int = 32
    relevance_dim: int = 0  # of tastes (models/relevance.py); 0: there is no order by relevance
    dropout: float = flag(0.0, "share of hidden units left out in training")
    without: tuple[str, ...] = ()  # of PARTS, left out

    @property
    def head_dim(self) -> int:
        """D."""
        return self.embedding_dim // self.num_heads

    def has(self, part: str) -> float:
        """Return 1 for a part of the model that is there, 0 for one that is left out."""
        return float(part not in self.without)

    @property
    def slope(self) -> float:
        """Stars per unit of score where the prediction is the mean: the sigmoid's derivative there."""
        low, high = self.stars_low, self.stars_high
        return max((self.stars_mean - low) * (high - self.stars_mean) / (high - low), 1e-3)
