"""Machine code older than what it was made of is forgotten."""

import os

from finemoe.cache.stale import forget_stale_kernels


def test_only_older_kernels_of_that_file_go(tmp_path):
    folder = tmp_path / "__pycache__"
    folder.mkdir()
    kernels = [folder / name for name in ("links.run-1.py311.nbi", "links.new-2.py311.nbi", "other.run-1.py311.nbi")]
    file, source = tmp_path / "links.py", tmp_path / "compiled.py"
    for path, seconds in zip([*kernels, file, source], (10, 30, 10, 5, 20), strict=True):
        path.write_text("")
        os.utime(path, (seconds, seconds))
    forget_stale_kernels(str(file), str(source))
    assert [path.exists() for path in kernels] == [False, True, True]
