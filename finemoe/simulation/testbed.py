"""A described testbed: what a machine can do per second, each constant with its source (DESIGN 6, data/hardware/*.yaml)."""

from dataclasses import MISSING, dataclass, fields
from numbers import Real
from pathlib import Path
from typing import Any

from finemoe.errors import FinemoeError
from finemoe.paths import DATA
from finemoe.suggestions import suggestion
from finemoe.units import is_whole

FOLDER = DATA / "hardware"
_MAY_BE_ZERO = (
    *("link_latency_s", "chunk_overhead_s", "interconnect_latency_s", "layer_overhead_s", "expert_overhead_s"),
    *("search_overhead_s", "hand_over_s", "hits_first"),
)


@dataclass(frozen=True)
class Testbed:
    """One machine; rates are sustained ones, not peaks.

    Attributes:
        title: description. devices: number of devices. memory_bytes: of each.
        flops_per_s, memory_bytes_per_s: of each device, at the model's precision.
        link_bytes_per_s, link_latency_s: of each device's link to the host. host_bytes_per_s: shared by all links.
        interconnect_bytes_per_s, interconnect_latency_s: between devices.
        layer_overhead_s, expert_overhead_s: overhead of the framework per decoder layer and per computed expert.
        search_bytes_per_s, search_overhead_s: rate at which a policy reads what it searches, and the minimum time of a search.
        chunk_overhead_s: overhead of a chunk of a prefetch beyond its bytes and the link's latency.
        hand_over_s: minimum duration of a search that is handed to a separate thread; shorter ones run in the inference thread.
        hits_first: 1 if a layer's experts are computed in order of arrival, 0 if in ascending order.
        A file may omit the last three, which are then 0: copies that are issued in time cost nothing beyond their bytes, and the
        paper's system searches in parallel with inference and computes in the model's own order.
    Raises:
        FinemoeError: a value is out of range.
    """

    title: str
    devices: int
    memory_bytes: float
    flops_per_s: float
    memory_bytes_per_s: float
    link_bytes_per_s: float
    link_latency_s: float
    host_bytes_per_s: float
    interconnect_bytes_per_s: float
    interconnect_latency_s: float
    layer_overhead_s: float
    expert_overhead_s: float
    search_bytes_per_s: float
    search_overhead_s: float
    chunk_overhead_s: float = 0.0
    hand_over_s: float = 0.0
    hits_first: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name != "title":
                _require_in_range(field.name, getattr(self, field.name))

    @property
    def total_bytes(self) -> float:
        """Memory of all devices."""
        return self.devices * self.memory_bytes

    @property
    def load_bytes_per_s(self) -> float:
        """Rate of a device's link while all links are busy."""
        return min(self.link_bytes_per_s, self.host_bytes_per_s / self.devices)

    @classmethod
    def load(cls, name: "str | Path | Testbed") -> "Testbed":
        """Load a testbed by its name in data/hardware, or from a YAML file; a Testbed is returned unchanged.

        Raises:
            FinemoeError: there is no such testbed, a constant or its source is missing, or a value is out of range.
        """
        import yaml

        if isinstance(name, Testbed):
            return name
        path = Path(name) if str(name).endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
        if not path.is_file():
            raise FinemoeError(f"no testbed {str(name)!r}; {suggestion(name, known_testbeds())}, or the path of a .yaml file")
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise FinemoeError(f"{path}: not a YAML file ({str(error).splitlines()[0]})") from error
        if not isinstance(content, dict):
            raise FinemoeError(f"{path}: not a mapping of constants; copy one of {FOLDER} and change it")
        values = _values(content, path)
        try:
            return cls(**values)
        except FinemoeError as error:
            raise FinemoeError(f"{path}: {error}") from error


def known_testbeds() -> list[str]:
    """Names of the testbeds included in the project."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def _values(content: dict[str, Any], path: Path) -> dict[str, Any]:
    names = [field.name for field in fields(Testbed)]
    needed = [field.name for field in fields(Testbed) if field.default is MISSING]
    if unknown := sorted(set(content) - set(names)):
        raise FinemoeError(f"{path}: unknown constant {unknown[0]!r}; {suggestion(unknown[0], names)}")
    if missing := [name for name in needed if name not in content]:
        raise FinemoeError(f"{path}: {missing[0]} is missing; every testbed states {', '.join(needed)}")
    return {name: str(value) if name == "title" else sourced(value, name, path) for name, value in content.items()}


def sourced(entry: Any, name: str, path: Path) -> Any:
    """The value of a constant written as {value: NUMBER, source: TEXT} in a file.

    Raises:
        FinemoeError: it is not written this way.
    """
    if not isinstance(entry, dict) or set(entry) != {"value", "source"} or not str(entry["source"]).strip():
        raise FinemoeError(f"{path}: {name} must be written {{value: NUMBER, source: WHERE IT COMES FROM}}")
    value = entry["value"]
    is_count = name in ("devices", "hits_first") and isinstance(value, float) and value == int(value)
    return int(value) if is_count else value


def _require_in_range(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < float("inf"):
        raise FinemoeError(f"{name} is {value!r}, not a number of its unit (in a file write 24.0e+9, with a point and a sign)")
    if not value and name not in _MAY_BE_ZERO:
        raise FinemoeError(f"{name} must be positive")
    if name == "devices" and not is_whole(value):
        raise FinemoeError(f"devices is {value!r}; it must be a whole number")
    if name == "hits_first" and value not in (0, 1):
        raise FinemoeError(f"hits_first is {value!r}; it must be 1 or 0")
