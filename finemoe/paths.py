"""Where things lie in a checkout, found from the package and never from the working folder."""

import os
from pathlib import Path

ROOT = Path(os.environ.get("FINEMOE_ROOT", Path(__file__).resolve().parent.parent))
DATA = ROOT / "data"
FIGURES = ROOT / "figures"
RESULTS = ROOT / "results"
MINIATURES = DATA / "models" / "miniatures"
MODEL_CONFIGS = DATA / "models" / "configs"
PUBLISHED_SIZES = DATA / "models" / "sizes.json"  # what these configurations come to
PROMPTS = DATA / "prompts"
REFERENCE_FIGURES = DATA / "reference" / "figures"
HEADLESS = "FINEMOE_HEADLESS"


def is_headless() -> bool:
    """Whether the pipeline runs this notebook: nobody can move a slider, and what widgets say to a front end that is not there
    can get in the way of the answer that the runner waits for."""
    return bool(os.environ.get(HEADLESS))
