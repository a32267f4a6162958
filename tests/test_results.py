"""Which commit a result names; files whole or not at all."""

import shutil
import subprocess
from pathlib import Path

import pytest

from hsidenoise.results import commit, write_files

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_the_packages_own_repository(tmp_path, monkeypatch):
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # set where tests run from a hook
        monkeypatch.delenv(name, raising=False)

    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    package = tmp_path / "package"
    package.mkdir()
    (package / "file").write_text("1")
    assert commit(package) == "unknown"
    git("init", "-q")
    assert commit(package) == "unknown"  # nothing committed yet
    git("add", ".")
    git("commit", "-q", "-m", "first")
    head = git("rev-parse", "--short", "HEAD")
    (tmp_path / "untracked").write_text("")
    assert commit(package) == head
    (package / "file").write_text("2")
    assert commit(package) == f"{head}-dirty"
    inner = package / "site-packages" / "hsidenoise"
    inner.mkdir(parents=True)
    assert commit(inner) == "unknown"


def test_without_git_the_commit_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(ROOT / "hsidenoise") == "unknown"


def test_files_appear_whole_or_not_at_all(tmp_path):
    (tmp_path / "a.md").write_text("old")
    write_files(tmp_path, {"a.md": "new", "b.csv": "µ"})
    assert (tmp_path / "a.md").read_text() == "new"
    assert (tmp_path / "b.csv").read_text(encoding="utf-8") == "µ"
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_files(tmp_path, {"folder": "text"})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.md", "b.csv", "folder"]
