"""A table of the published models' sizes, included because computing them with `ModelSize.from_config` takes Transformers five
seconds. `python -m finemoe.simulation.published_sizes` writes it.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from finemoe.files import write_text
from finemoe.paths import MODEL_CONFIGS, PUBLISHED_SIZES


def known_size(config: Path) -> dict[str, Any] | None:
    """The fields of a configuration's `ModelSize`; None if the table has no entry, or one for other contents of the file."""
    if not PUBLISHED_SIZES.is_file():
        return None
    row = json.loads(PUBLISHED_SIZES.read_text(encoding="utf-8")).get(config.stem)
    is_of_it = row is not None and config.is_file() and row["config_sha256"] == _digest(config)
    return row["size"] if is_of_it else None


def write_table() -> None:
    """Compute the size of every configuration in data/models/configs and write the table."""
    from finemoe.simulation.cost import ModelSize

    rows = {
        config.stem: {"config_sha256": _digest(config), "size": asdict(ModelSize.from_config(config, config.stem))}
        for config in sorted(MODEL_CONFIGS.glob("*.json"))
    }
    write_text(PUBLISHED_SIZES, json.dumps(rows, indent=1) + "\n")


def _digest(config: Path) -> str:
    return hashlib.sha256(config.read_bytes()).hexdigest()


if __name__ == "__main__":
    write_table()
