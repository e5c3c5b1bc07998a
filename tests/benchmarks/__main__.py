"""Prints what the benchmarks noted beside their times: `python -m tests.benchmarks results/benchmarks.json`."""

import json
import sys
from pathlib import Path

for benchmark in json.loads(Path(sys.argv[1]).read_text())["benchmarks"]:
    noted = {name: value for name, value in benchmark["extra_info"].items() if name != "tokens"}
    print(f"{benchmark['name']}: {', '.join(f'{name} {value}' for name, value in noted.items())}")
