"""Where things lie, found from the package and never from the working folder: in a checkout, or, where the package alone is
installed, where it puts the few of them that it brings (testbeds and configurations of models).
"""

import os
import site
import sys
from pathlib import Path


def _root() -> Path:
    """Of the checkout, or of what was installed, or the checkout's place where there is neither."""
    checkout = Path(__file__).resolve().parent.parent
    installed = [Path(prefix) / "share" / "finemoe" for prefix in (sys.prefix, site.USER_BASE) if prefix]
    return next((place for place in (checkout, *installed) if (place / "data").is_dir()), checkout)


ROOT = Path(os.environ["FINEMOE_ROOT"]) if "FINEMOE_ROOT" in os.environ else _root()
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
