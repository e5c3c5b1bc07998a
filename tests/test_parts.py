"""A commit decides which part of the families it is tested with, always the same; commits together reach all parts."""

import os
import subprocess

from tests.parts import commit, part


def git(folder, *arguments: str) -> str:
    names = {f"GIT_{role}_{what}": "x@x" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(["git", *arguments], cwd=folder, env=os.environ | names, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_commit_has_a_part_and_commits_reach_all_parts(tmp_path):
    git(tmp_path, "init", "--quiet")
    assert (commit(tmp_path), part(4, tmp_path)) == ("", 0)  # nothing committed yet
    seen = {}
    for number in range(40):
        git(tmp_path, "commit", "--quiet", "--allow-empty", "-m", str(number))
        seen[git(tmp_path, "rev-parse", "HEAD")] = part(4, tmp_path)
        (tmp_path / "change").write_text(str(number))
        assert part(4, tmp_path) == seen[commit(tmp_path)]  # what is not committed moves nothing
    assert set(seen.values()) == {0, 1, 2, 3}
    for known, expected in list(seen.items())[:4]:
        git(tmp_path, "checkout", "--quiet", known)
        assert part(4, tmp_path) == expected


def test_an_archive_has_the_first_part_also_inside_another_repository(tmp_path, monkeypatch):
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "-m", "outer")
    (tmp_path / "archive").mkdir()
    assert (commit(tmp_path / "archive"), part(4, tmp_path / "archive")) == ("", 0)
    monkeypatch.setenv("PATH", "")
    assert (commit(tmp_path), part(4, tmp_path)) == ("", 0)  # without git
