from preprocessing.environment import require

require("fastapi", "uvicorn", "threadpoolctl")
