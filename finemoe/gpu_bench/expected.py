"""What the engine is expected to take on a GPU, before anything was measured on one (data/measured/expected.yaml)."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finemoe.errors import FinemoeError
from finemoe.paths import DATA
from finemoe.simulation.testbed import Testbed

PATH = DATA / "measured" / "expected.yaml"


@dataclass(frozen=True)
class Expected:
    """Constants of a testbed, and by policy what its own work adds to every layer, in seconds."""

    machine: dict[str, Any]
    layer_s: dict[str, float]

    @classmethod
    def load(cls, path: Path = PATH) -> "Expected":
        """The constants of a file.

        Raises:
            FinemoeError: it is not what was expected.
        """
        import yaml

        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        try:
            return cls(*({name: _value(entry) for name, entry in content[part].items()} for part in ("machine", "layer_s")))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FinemoeError(f"{path}: expected machine: and layer_s:, of {{value: NUMBER, source: TEXT}} ({error})") from error

    def testbed(self, card: str, policy: str) -> Testbed:
        """A card with what a policy's own work adds to a layer; card: a name in data/hardware."""
        machine = replace(Testbed.load(card), **self.machine)
        return replace(machine, layer_overhead_s=machine.layer_overhead_s + self.layer_s.get(policy, 0.0))


def _value(entry: dict[str, Any]) -> float:
    if not str(entry["source"]).strip():
        raise ValueError("a constant has no source")
    return float(entry["value"])
