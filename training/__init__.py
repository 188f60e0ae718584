from preprocessing.environment import require

require("torch")
