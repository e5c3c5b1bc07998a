"""Where files are, relative to the package and never to the working folder: in a checkout, or, if only the package is installed,
in the folder where it installs the few files that it ships (testbeds and model configurations).
"""

import os
import site
import sys
from pathlib import Path


def _root() -> Path:
    """The root of the checkout or of the installed files; the checkout's place if there is neither."""
    checkout = Path(__file__).resolve().parent.parent
    installed = [Path(prefix) / "share" / "finemoe" for prefix in (sys.prefix, site.USER_BASE) if prefix]
    return next((place for place in (checkout, *installed) if (place / "data").is_dir()), checkout)


ROOT = Path(os.environ["FINEMOE_ROOT"]) if "FINEMOE_ROOT" in os.environ else _root()
DATA = ROOT / "data"
FIGURES = ROOT / "figures"
RESULTS = ROOT / "results"
MINIATURES = DATA / "models" / "miniatures"
MODEL_CONFIGS = DATA / "models" / "configs"
PUBLISHED_SIZES = DATA / "models" / "sizes.json"  # bytes of these configurations
PROMPTS = DATA / "prompts"
REFERENCE_FIGURES = DATA / "reference" / "figures"
HEADLESS = "FINEMOE_HEADLESS"


def is_headless() -> bool:
    """Whether the pipeline runs this notebook: sliders cannot be moved, and messages that widgets send to a missing front end can
    interfere with the answer that the runner waits for."""
    return bool(os.environ.get(HEADLESS))
