"""Where things lie in a checkout, found from the package and never from the working folder."""

import os
from pathlib import Path

ROOT = Path(os.environ.get("FINEMOE_ROOT", Path(__file__).resolve().parent.parent))
DATA = ROOT / "data"
FIGURES = ROOT / "figures"
RESULTS = ROOT / "results"
MINIATURES = DATA / "models" / "miniatures"
MODEL_CONFIGS = DATA / "models" / "configs"
PROMPTS = DATA / "prompts"
