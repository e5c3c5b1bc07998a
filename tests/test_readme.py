"""What the README shows is what a reader gets: its Python runs as pasted, in the order of the page."""

import os
import re
import subprocess
import sys

from finemoe.paths import ROOT


def test_its_python_runs_as_pasted(tmp_path):
    """In one session, where the repository is: here a folder with its data and nothing else, which stays as it was."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    (tmp_path / "data").symlink_to(ROOT / "data")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "Why is the sea salty?" in done.stdout
    assert "hit rate" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
