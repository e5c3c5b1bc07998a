"""A warm-up profile: what earlier runs of a model used and learned, so that the next run need not start cold.

One file holds how often every expert was demanded, and what the policies learned. A run that starts from it loads the experts
demanded most before the first token, and its policy goes on from where the last run ended.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from finemoe.errors import FinemoeError
from finemoe.files import load_arrays, save_arrays

_KIND, _VERSION = "warm-up-profile", 1
_FADING = 0.5  # what the demands of earlier runs weigh against those of the last one
_AGAIN = "name another file, or remove this one to start afresh"


@dataclass(frozen=True)
class Profile:
    """What runs of one model used and learned.

    Attributes:
        model: the model's identity. demands: [L, J] float64, how often each expert was demanded, earlier runs fading.
        learned: by policy, what it learned, by name.
        num_runs: how many runs it is from.
    """

    model: str
    demands: np.ndarray
    learned: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    num_runs: int = 1

    def after(self, earlier: "Profile | None") -> "Profile":
        """This run's profile added to that of earlier runs; what other policies learned is kept."""
        if earlier is None:
            return self
        demands = self.demands + _FADING * earlier.demands
        return Profile(self.model, demands, earlier.learned | self.learned, self.num_runs + earlier.num_runs)

    def experts(self) -> list[tuple[int, int]]:
        """(layer, expert) of all experts that were ever demanded, the one demanded most first."""
        num_experts = self.demands.shape[1]
        order = np.argsort(-self.demands.reshape(-1), kind="stable")
        return [divmod(flat, num_experts) for flat in order.tolist() if self.demands.flat[flat] > 0]

    def require_model(self, path: str | Path, model: str, shape: tuple[int, int]) -> None:
        """Refuse a profile of another model.

        Raises:
            FinemoeError: it is.
        """
        if self.model != model or self.demands.shape != shape:
            raise FinemoeError(f"{path}: this profile is of {self.model!r}, not of {model!r}; {_AGAIN}")

    def save(self, path: str | Path) -> None:
        """Write the profile to one file, atomically."""
        arrays = {f"{policy}/{name}": array for policy, found in self.learned.items() for name, array in found.items()}
        save_arrays(path, _KIND, _VERSION, {"demands": self.demands, **arrays}, {"model": self.model, "num_runs": self.num_runs})

    @classmethod
    def load(cls, path: str | Path) -> "Profile":
        """Read a profile that `save` wrote.

        Raises:
            FinemoeError: the file is missing, damaged, or something else.
        """
        try:
            arrays, meta = load_arrays(path, _KIND, _VERSION)
        except FinemoeError as error:
            raise FinemoeError(f"{error}; {_AGAIN}") from error
        demands = arrays.pop("demands")
        learned: dict[str, dict[str, np.ndarray]] = {}
        for name, array in arrays.items():
            policy, _, part = name.partition("/")
            learned.setdefault(policy, {})[part] = array
        return cls(meta["model"], demands, learned, meta["num_runs"])
