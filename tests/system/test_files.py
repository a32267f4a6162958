"""Files: whole or not at all, whatever ends the run; what is refused as input; the hash; the commit."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from hsidenoise.data.io import write_arrays
from hsidenoise.figures.cubes import save_figure
from hsidenoise.models import create_model
from hsidenoise.models.weights import save_weights
from hsidenoise.system import files
from hsidenoise.system.files import (
    check_source,
    check_target,
    commit,
    packaged,
    remove_leftovers,
    replacing,
    replacing_all,
    sha256,
    write_text,
)
from hsidenoise.training.checkpoints import AtomicCheckpoints

ROOT = Path(__file__).parents[2]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def start(program, *arguments):
    """A program of its own that waits once it has printed a line."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert process.stdout.readline() == "writing\n"
    return process


WRITES = """
import sys, time
from hsidenoise.system.files import replacing
with replacing(sys.argv[1], folder=len(sys.argv) > 2) as temporary:
    if len(sys.argv) > 2:
        temporary /= "01.png"
    temporary.write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""


class TestWriting:
    def test_a_failure_leaves_what_was_there(self, tmp_path):
        write_text(tmp_path / "a.txt", "old")
        with pytest.raises(TypeError), replacing(tmp_path / "a.txt") as temporary:
            temporary.write_bytes("text" if temporary.write_text("half") else b"")
        assert (tmp_path / "a.txt").read_text() == "old"
        assert names(tmp_path) == ["a.txt"]
        write_text(tmp_path / "a.txt", "µ\n")
        assert (tmp_path / "a.txt").read_bytes() == "µ\n".encode()

    def test_a_folder_in_the_way(self, tmp_path):
        (tmp_path / "folder").mkdir()
        with pytest.raises(IsADirectoryError, match="folder"):
            write_text(tmp_path / "folder", "text")
        assert names(tmp_path) == ["folder"]

    def test_an_error_of_the_source_does_not_blame_the_target(self, tmp_path):
        with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "a.txt"):
            Path(tmp_path, "source").read_bytes()
        assert caught.value.filename == str(tmp_path / "source")
        with (
            pytest.raises(OSError, match=r"cannot write .*a\.txt: it broke; nothing was left"),
            replacing(tmp_path / "a.txt"),
        ):
            raise RuntimeError("it broke\nin two lines")
        assert names(tmp_path) == []

    def test_mode_and_link_stay(self, tmp_path):
        (tmp_path / "real").touch(mode=0o600)
        (tmp_path / "real").chmod(0o604)
        (tmp_path / "link").symlink_to("real")
        with replacing(tmp_path / "link") as temporary:
            assert stat.S_IMODE(temporary.stat().st_mode) == 0o600  # nobody else may look before
            temporary.write_text("new")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "real").read_text() == "new"
        assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o604

    @pytest.mark.parametrize("umask", [0o022, 0o077])
    def test_new_files_of_every_kind_follow_the_umask(self, tmp_path, umask):
        before = os.umask(umask)
        try:
            for path in every_writer(tmp_path):
                assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask, path
        finally:
            os.umask(before)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can make files of others")
    def test_a_file_of_another_user_stays_theirs(self, tmp_path):
        for path in every_writer(tmp_path):
            os.chown(path, 1234, 4321)
            path.chmod(0o640)
        for path in every_writer(tmp_path):
            found = path.stat()
            assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1234, 4321, 0o640), path

    @pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can become another")
    def test_where_an_owner_cannot_be_given_it_goes_on(self, tmp_path):
        open_folder = tmp_path / "open"
        open_folder.mkdir()
        open_folder.chmod(0o777)
        write_text(open_folder / "a.txt", "old")
        (open_folder / "a.txt").chmod(0o666)
        for parent in (tmp_path, *tmp_path.parents):  # pytest's own, private by default
            if parent == Path(tempfile.gettempdir()) or parent.parent == parent:
                break
            parent.chmod(0o711)
        child = os.fork()
        if child == 0:
            try:
                os.setgid(4321)
                os.setuid(1234)
                write_text(open_folder / "a.txt", "new")
            except BaseException:
                os._exit(1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert (open_folder / "a.txt").read_text() == "new"
        assert (open_folder / "a.txt").stat().st_uid == 1234
        assert stat.S_IMODE((open_folder / "a.txt").stat().st_mode) == 0o666
        assert names(open_folder) == ["a.txt"]

    def test_content_then_name_then_folder_are_on_the_disk(self, tmp_path, monkeypatch):
        """Every writer: the file is synced before it gets its name, the folder after it."""
        done = []
        sync, rename = os.fsync, Path.replace

        def synced(handle):
            done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
            sync(handle)

        def renamed(path, target):
            done.append("name")
            return rename(path, target)

        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(Path, "replace", renamed)
        written = every_writer(tmp_path)
        assert done == ["file", "name", "folder"] * len(written)
        done.clear()
        with replacing(tmp_path / "bands", folder=True) as temporary:
            (temporary / "01.png").touch()
            (temporary / "02.png").touch()
        assert done == ["file", "file", "folder", "name", "folder"]

    @pytest.mark.parametrize("name", ["", "-"])
    def test_what_is_no_name_of_a_file(self, name):
        with pytest.raises(ValueError, match="not the name of a file"):
            check_target(name)


def every_writer(folder):
    """Each kind of file that this package writes."""
    write_text(folder / "table.csv", "a,b\n")
    write_arrays(folder / "cube.mat", {"cube": np.ones((2, 3, 4))})
    save_figure(Figure(figsize=(1, 1)), folder / "picture.png")
    network = create_model("hcanet-bra", planes=3, dim=8, num_blocks=(1, 0, 0), num_refinement_blocks=0)
    save_weights(folder / "w.safetensors", network, name="hcanet-bra")
    AtomicCheckpoints().save_checkpoint({"step": 1}, folder / "last.ckpt")
    return [folder / name for name in ("table.csv", "cube.mat", "picture.png", "w.safetensors", "last.ckpt")]


class TestLeftovers:
    @pytest.mark.parametrize("folder", [False, True])
    def test_what_a_killed_run_left_goes_with_the_next_write(self, tmp_path, folder):
        with start(WRITES, tmp_path / "target", *["folder"] * folder) as process:
            (left,) = names(tmp_path)
            write_text(tmp_path / "other.txt", "text")
            assert names(tmp_path) == [left, "other.txt"]  # it runs
            process.kill()
        write_text(tmp_path / "other.txt", "text")
        assert names(tmp_path) == ["other.txt"]

    def test_a_killed_child_that_nobody_has_asked_for_yet_is_gone_too(self, tmp_path):
        process = start(WRITES, tmp_path / "target")
        process.kill()
        until = time.monotonic() + 20
        while f"{process.pid}" in " ".join(names(tmp_path)) and time.monotonic() < until:
            remove_leftovers(tmp_path)
            time.sleep(0.01)
        assert names(tmp_path) == []
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()

    def test_another_process_with_its_number_does_not_keep_it(self, tmp_path):
        mine = files._temporary(tmp_path)
        place, number, started, rest = mine.name.removeprefix(".hsidenoise-").split("-")
        assert int(number) == os.getpid()
        earlier = tmp_path / f".hsidenoise-{place}-{number}-{int(started) - 1}-{rest}"
        mine.touch()
        earlier.touch()
        remove_leftovers(tmp_path)
        assert names(tmp_path) == [mine.name]

    def test_what_cannot_be_known_is_left_for_a_day(self, tmp_path):
        for start in ("1", ""):  # of another machine, which may not say when a process started
            path = tmp_path / f".hsidenoise-00000000-1-{start}-0123abcd.part"
            path.touch()
            remove_leftovers(tmp_path)
            assert path.exists()
            os.utime(path, (time.time() - 90000,) * 2)
            remove_leftovers(tmp_path)
            assert not path.exists()

    @pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can make files of others")
    def test_files_of_others_are_left_alone(self, tmp_path):
        path = tmp_path / ".hsidenoise-00000000-1-1-0123abcd.part"
        path.touch()
        os.utime(path, (0, 0))
        os.chown(path, 1234, 4321)
        remove_leftovers(tmp_path)
        assert path.exists()

    def test_only_names_of_this_program(self, tmp_path):
        kept = [".hsidenoise-notes", "a.part", ".other-00000000-1-1-0123abcd.part"]
        kept += [f".hsidenoise-{name}.part" for name in ("", "thesis", "0123456789ab", "00000000-1-1-0123abcd.part")]
        kept += [
            f".hsidenoise-00000000-{rest}.part" for rest in ("thesis", "1-1-ab", "1-1-0123abcd-2", "\u0661-1-0123abcd")
        ]
        for name in kept:
            (tmp_path / name).mkdir() if "thesis" in name else (tmp_path / name).touch()
            os.utime(tmp_path / name, (0, 0))
        link = tmp_path / ".hsidenoise-00000000-1-1-0123abcd.part"
        link.symlink_to("a.part")
        os.utime(link, (0, 0), follow_symlinks=False)
        remove_leftovers(tmp_path)
        assert names(tmp_path) == sorted(kept)


class TestPairs:
    def fill(self, paths, meanwhile):
        with replacing_all(paths) as temporaries:
            for temporary in temporaries:
                temporary.write_text("new")
            meanwhile()

    @pytest.mark.parametrize("before", [None, "old"])
    def test_both_or_none(self, tmp_path, before):
        paths = [tmp_path / "a.img", tmp_path / "a.hdr"]
        if before:
            paths[0].write_text(before)
        with pytest.raises(OSError, match="nothing was left behind"):  # the second name is taken at the last moment
            self.fill(paths, (tmp_path / "a.hdr").mkdir)
        assert names(tmp_path) == (["a.hdr", "a.img"] if before else ["a.hdr"])
        assert before is None or paths[0].read_text() == before
        (tmp_path / "a.hdr").rmdir()
        self.fill(paths, lambda: None)
        assert [path.read_text() for path in paths] == ["new", "new"]
        assert names(tmp_path) == ["a.hdr", "a.img"]


class TestReading:
    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 5953527\n",
                "git lfs pull",
            ),
            (b"<!DOCTYPE html><html><title>Virus scan warning</title></html>", "web page"),
            (b"\xef\xbb\xbf\n <HTML lang='en'>", "web page"),
            (b"PK\x03\x04" + bytes(200), "unpack it"),
            (b"\x1f\x8b\x08" + bytes(200), "gunzip"),
            (b"", "is empty"),
        ],
    )
    def test_a_file_of_another_kind_has_its_own_remedy(self, tmp_path, content, says):
        path = tmp_path / "cube.mat"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=says) as caught:
            check_source(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)

    def test_what_may_never_end_is_not_read(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)  # the path of a socket is short
        os.mkfifo("pipe.mat")
        with socket.socket(socket.AF_UNIX) as one:
            one.bind("socket.mat")
            for path, kind in (("pipe.mat", "a pipe"), ("socket.mat", "a socket"), ("/dev/zero", "a device")):
                with pytest.raises(OSError, match=f"{path}: it is {kind}"):
                    check_source(path)

    def test_a_missing_file_and_its_missing_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no such file: .*a\.mat$"):
            check_source(tmp_path / "a.mat")
        with pytest.raises(FileNotFoundError, match=r"no such file: .*a\.mat \(folder .*none is missing\)$"):
            check_source(tmp_path / "none" / "a.mat")
        check_source(tmp_path)


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
    head = git("rev-parse", "HEAD")[:12]
    (tmp_path / "untracked").write_text("")
    assert commit(package) == head
    (package / "file").write_text("2")
    assert commit(package) == f"{head}-dirty"
    inner = package / "site-packages" / "hsidenoise"
    inner.mkdir(parents=True)
    assert commit(inner) == "unknown"


def test_the_commit_of_this_checkout_is_found():
    head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    assert commit().removesuffix("-dirty") == (head.stdout.strip() or "unknown")


def test_without_git_the_commit_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(ROOT / "hsidenoise") == "unknown"


def test_the_hash_of_a_folder_may_be_of_some_files(tmp_path):
    (tmp_path / "1.PNG").write_text("a")
    first = sha256(tmp_path, ending=".png")
    (tmp_path / "notes.txt").write_text("b")
    assert sha256(tmp_path, ending=".png") == first
    assert sha256(tmp_path) != first


def test_what_comes_with_the_package_is_found_by_name_where_no_file_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = packaged("cave_complex", "configs/tables", ".yaml")
    assert table == packaged("cave_complex.yaml", "configs/tables", ".yaml")
    assert table.read_text().startswith("#")
    assert packaged("superballs", "samples", ".mat").stat().st_size > 500_000
    Path("cave_complex").touch()
    assert packaged("cave_complex", "configs/tables", ".yaml") == Path("cave_complex")
    assert packaged("no/such.yaml", "configs", ".yaml") == Path("no/such.yaml")
    with pytest.raises(FileNotFoundError, match=r"hcanet-bar: no such file, nor a name .*: .*hcanet-bra, "):
        packaged("hcanet-bar", "configs", ".yaml")
