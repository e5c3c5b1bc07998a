"""The expected speed of the engine on a GPU, set before any measurement on one (data/measured/expected.yaml)."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finemoe.artifact.machines.measured import MEASURED
from finemoe.errors import FinemoeError
from finemoe.simulation.testbed import Testbed, sourced

PATH = MEASURED / "expected.yaml"


@dataclass(frozen=True)
class Expected:
    """Constants of a testbed, and the time in seconds that each policy's own work adds to every layer."""

    machine: dict[str, Any]
    layer_s: dict[str, float]

    @classmethod
    def load(cls, path: Path = PATH) -> "Expected":
        """Load the constants from a file.

        Raises:
            FinemoeError: the file does not have the expected form.
        """
        import yaml

        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        parts: list[Any] = [content.get(part) if isinstance(content, dict) else None for part in ("machine", "layer_s")]
        if not all(isinstance(part, dict) for part in parts):
            raise FinemoeError(f"{path}: expected two mappings of constants, machine: and layer_s:")
        return cls(*({name: float(sourced(entry, name, path)) for name, entry in part.items()} for part in parts))

    def testbed(self, card: str, policy: str) -> Testbed:
        """A card including what a policy's own work adds to a layer; `card` is a name in data/hardware."""
        machine = replace(Testbed.load(card), **self.machine)
        return replace(machine, layer_overhead_s=machine.layer_overhead_s + self.layer_s.get(policy, 0.0))
