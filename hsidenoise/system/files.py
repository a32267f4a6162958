"""Files: what is looked at before one is read, the one way to write one, its hash, and the commit of the code.

A write goes to a temporary file beside the target that takes its name at the end, on the disk before that. A failure
leaves neither half a file nor a harmed one. A kill leaves the temporary file; its name says whose it is, and the next
write into that folder removes it if that process has ended.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_MARK, _PART = ".hsidenoise-", ".part"
_OURS = re.compile(rf"{re.escape(_MARK)}([0-9a-f]{{8}})-([0-9]+)-([0-9]*)-[0-9a-f]{{8}}{re.escape(_PART)}", re.ASCII)

#: A temporary file whose process cannot be asked for (another machine's, on a shared folder) is left for this long.
_FORGOTTEN = 86400.0  # seconds since it was last written to; a write takes minutes

_PAGE = "is a web page, as a download gives that wants a login or an answer first; open it in a browser and download it"
_CLASSIC = "is a classic NetCDF file; convert it to NetCDF-4: nccopy -k nc4 old.nc new.nc"
_FOREIGN = (  # first bytes, in lower case
    (
        b"version https://git-lfs.github.com/spec/",
        "is a Git LFS pointer, not the file; fetch that: git lfs pull",
    ),
    (b"<!doctype html", _PAGE),
    (b"<html", _PAGE),
    (b"pk\x03\x04", "is a zip archive; unpack it and name the file in it"),
    (b"cdf\x01", _CLASSIC),
    (b"cdf\x02", _CLASSIC),
    (b"cdf\x05", _CLASSIC),
    (b"\x0e\x03\x13\x01", "is an HDF4 file; convert it to HDF5: h4toh5 old.hdf new.h5"),
    (b"\x1f\x8b", "is compressed by gzip; unpack it (gunzip) and name the file in it"),
)


NO_PERMISSION = "no permission to read it; ask its owner for that, or chmod u+r if it is yours"


def check_no_pipe(path: str | Path) -> None:
    """Refuse a pipe, a socket and a device: reading one may wait for ever.

    Args:
        path: Anything; what is missing is left to those who open it.

    Raises:
        OSError: If it is one.
    """
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        kind = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise OSError(f"cannot read {path}: it is {kind}; save what comes from it as a file and name that")


def check_source(path: str | Path) -> None:
    """Refuse, before anything else is looked at, what cannot be the file of a cube.

    Raises:
        OSError: If it is missing, cannot be opened, or is a pipe, a socket or a device.
        ValueError: If it is empty, a Git LFS pointer, a web page, a zip archive (.npz is one, and taken) or gzip's.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        missing = "" if path.parent.is_dir() else f" (folder {path.parent} is missing)"
        raise FileNotFoundError(f"no such file: {path}{missing}") from None
    except PermissionError as error:
        raise PermissionError(f"cannot read {path}: {NO_PERMISSION}") from error
    if stat.S_ISDIR(mode):
        return
    check_no_pipe(path)
    try:
        with path.open("rb") as file:
            whole = file.read(512)
    except PermissionError as error:
        raise PermissionError(f"cannot read {path}: {NO_PERMISSION}") from error
    if not whole:
        raise ValueError(f"cannot read {path}: it is empty (0 bytes); copy or download it again")
    head = whole.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"pk\x03\x04") and whole[30 : 30 + int.from_bytes(whole[26:28], "little")].endswith(b".npy"):
        return
    for start, remedy in _FOREIGN:
        if head.startswith(start):
            raise ValueError(f"cannot read {path}: it {remedy}")


def check_target(path: str | Path) -> None:
    """Find out, before hours of computing, whether a file can be written.

    Raises:
        OSError: If not, with what to do.
        ValueError: If it is not a name at all.

    Example:
        >>> check_target("/no/such/folder/clean.mat")
        Traceback (most recent call last):
        FileNotFoundError: cannot write /no/such/folder/clean.mat: folder /no/such/folder is missing; create it first
    """
    if str(path) in ("", "-"):
        raise ValueError(f"cannot write '{path}': that is not the name of a file; give one, such as clean.mat")
    target = Path(os.path.realpath(path))  # through a link, so that the link stays one
    folder = target.parent
    if target.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder; give the name of a new file or folder")
    if target.exists() and not target.is_file():
        raise OSError(f"cannot write {path}: it exists and is not a regular file; choose another name")
    if target.exists() and not os.access(target, os.W_OK):
        raise PermissionError(f"cannot write {path}: it is write-protected; choose another name")
    if not folder.exists():
        raise FileNotFoundError(f"cannot write {path}: folder {folder} is missing; create it first")
    if not folder.is_dir():
        raise NotADirectoryError(f"cannot write {path}: {folder} is a file, not a folder; choose another place")
    try:  # permissions alone do not tell: read-only mounts, quotas, the superuser
        probe = _temporary(folder)
        _create(probe, 0o600)
        probe.unlink()
    except OSError as error:
        raise type(error)(
            f"cannot write {path}: no file can be created in {folder} ({error.strerror}); choose another place"
        ) from error


@contextmanager
def replacing(target: str | Path, *, folder: bool = False) -> Iterator[Path]:
    """Give a temporary path beside the target that becomes the target on success and vanishes otherwise.

    A target that is there keeps its mode, and its owner and group where the system lets them be given; a symbolic link
    stays one. File and folder are on the disk at the end.

    Args:
        target: The file to write.
        folder: Whether the path given is a folder to be filled; its target must not exist yet.

    Yields:
        The temporary path: an empty file, or an empty folder.

    Raises:
        OSError: If the target cannot be written; what was there is as it was.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as name:
        ...     with replacing(Path(name, "a.txt")) as temporary:
        ...         _ = temporary.write_text("text")
        ...     [(file.name, file.read_text()) for file in Path(name).iterdir()]
        [('a.txt', 'text')]
    """
    with replacing_all([target], folder=folder) as (temporary,):
        yield temporary


@contextmanager
def replacing_all(targets: Sequence[str | Path], *, folder: bool = False) -> Iterator[tuple[Path, ...]]:
    """Like :func:`replacing` for files that belong together: all of them are replaced, or none.

    A kill between two of their renames leaves the first of them without the others: name that first which nobody reads
    without the last.

    Args:
        targets: The files to write.
        folder: Whether each is a folder.

    Yields:
        Their temporary paths.

    Raises:
        OSError: If one cannot be written; what was there is as it was.
    """
    for target in targets:
        check_target(target)
    finals = [Path(os.path.realpath(target)) for target in targets]
    for place in {final.parent for final in finals}:
        remove_leftovers(place)
    temporaries = tuple(_temporary(final.parent) for final in finals)
    try:
        for temporary, final in zip(temporaries, finals, strict=True):
            if folder:
                temporary.mkdir()
            else:  # while it is written, nobody may read it who may not read what it replaces
                _create(temporary, 0o600 if final.exists() else 0o666)
        yield temporaries
        for temporary, final in zip(temporaries, finals, strict=True):
            if folder:
                for item in (*temporary.rglob("*"), temporary):
                    _sync(item)
            else:
                _sync(temporary)  # the name must not get ahead of the content if the machine dies
                if final.exists():
                    _like(temporary, final.stat())
        _take_names(temporaries, finals)
        for place in {final.parent for final in finals}:
            _sync(place)
    except (OSError, RuntimeError) as error:
        if all(_of_another_file(error, temporary) for temporary in temporaries):
            raise
        raise OSError(f"cannot write {targets[0]}: {_reason(error)}; nothing was left behind") from error
    finally:
        for temporary in temporaries:
            _remove(temporary)


def _reason(error: OSError | RuntimeError) -> str:
    """What went wrong, in the system's words as far as a library passes them on."""
    if isinstance(error, shutil.Error) and error.args and error.args[0]:
        return re.sub(r"^\[Errno \d+\] |: '.*$", "", str(error.args[0][0][2]))
    text = getattr(error, "strerror", None) or str(error)
    within = re.search(r"error message = '([^']+)'", text)  # of HDF5
    return within[1] if within else (text.splitlines() or [type(error).__name__])[0]


def _take_names(temporaries: Sequence[Path], finals: Sequence[Path]) -> None:
    """Rename each; if one cannot be, those before it get back what they were."""
    done: list[tuple[Path, Path | None]] = []
    try:
        for temporary, final in zip(temporaries, finals, strict=True):
            before = None
            if final is not finals[-1] and final.exists():
                before = _temporary(final.parent)
                try:
                    os.link(final, before)
                except OSError:  # a file system without links
                    shutil.copy2(final, before)
                done.append((final, before))
            temporary.replace(final)
            if before is None:
                done.append((final, None))
    except BaseException:
        for final, before in done:
            if before is None:
                final.unlink(missing_ok=True)
            else:
                before.replace(final)
        raise
    for _, before in done:
        if before is not None:
            before.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed runs of this user left in a folder, by the whole of their names.

    Left alone: those of a process that runs, of another user, and, for a day after they were last written to, those of
    a process that cannot be asked for: on another machine, in another container, or before a restart.
    """
    with suppress(OSError):
        for path in list(folder.iterdir()):
            if (whose := _OURS.fullmatch(path.name)) is None:
                continue
            with suppress(OSError):
                about = path.lstat()
                if about.st_uid == _user() and _is_left(whose, about.st_mtime):
                    _remove(path)


def packaged(path: str | Path, folder: str, suffix: str) -> Path:
    """The file of a path or, for a plain name that no file has, the one of that name that comes with the package.

    Args:
        path: Such as ``my/table.yaml``, ``cave_complex`` or ``cave_complex.yaml``.
        folder: Folder of the package.
        suffix: How its files end.

    Raises:
        FileNotFoundError: If a plain name is neither's; it names those that come with the package.

    Example:
        >>> packaged("cave_complex", "configs/tables", ".yaml").name, packaged("my/own.yaml", "configs", ".yaml").name
        ('cave_complex.yaml', 'own.yaml')
    """
    path = Path(path)
    if path.exists() or len(path.parts) != 1:
        return path
    own = {file.stem: file for file in (_PACKAGE / folder).glob(f"*{suffix}")}
    name = path.name.removesuffix(suffix)
    if name not in own:
        names = ", ".join(sorted(own))
        raise FileNotFoundError(f"{path}: no such file, nor a name that comes with the package: {names}")
    return own[name]


def sha256(path: str | Path, *, ending: str = "") -> str:
    """SHA-256 of a file, or of all files of a folder with their names, in hexadecimal.

    Args:
        path: File or folder.
        ending: Of a folder, only files whose names end so; lower case.

    Raises:
        OSError: If it is missing or cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    total = hashlib.sha256()
    for each in sorted(path.rglob("*")):
        if each.is_file() and each.name.lower().endswith(ending):
            total.update(each.relative_to(path).as_posix().encode() + b"\0" + sha256(each).encode())
    return total.hexdigest()


def commit(package: Path = _PACKAGE) -> str:
    """Commit that the code of this package is at, with ``-dirty`` if a tracked file differs from it.

    Returns:
        The first twelve digits of its hash; ``unknown`` without git, or where the package does not lie in a repository
        of its own.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != package.resolve().parent:
            return "unknown"  # installed somewhere inside a repository of something else
        dirty = "-dirty" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "--short=12", "HEAD") + dirty
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _temporary(folder: Path) -> Path:
    """A new name that says which process it belongs to: where, its number, when it started."""
    whose = f"{_place()}-{os.getpid()}-{_process(os.getpid())[1]}"
    return folder / f"{_MARK}{whose}-{secrets.token_hex(4)}{_PART}"


def _is_left(whose: re.Match[str], written: float) -> bool:
    """Whether nobody will finish a temporary file of that name, last written to at that time."""
    place, number, started = whose.groups()
    if place == _place() and os.name == "posix":
        runs, start = _process(int(number))
        return not runs or start not in (started, "")  # another process has got its number since
    return time.time() - written > _FORGOTTEN


@cache
def _place() -> str:
    """Where a process number means what it means here: this machine since its start, this container on it."""
    facts = [platform.node()]
    with suppress(OSError):
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        facts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:8]


def _process(number: int) -> tuple[bool, str]:
    """Whether a process of that number runs here, and when it started; empty where the system does not say."""
    try:
        # behind the name, which may hold anything: the state, and 19 fields further the start in ticks
        fields = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return fields[0] not in "ZX", fields[19]
    except (OSError, IndexError):
        pass
    if os.name != "posix":
        return True, ""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False, ""
    except (OSError, OverflowError):  # another user's
        pass
    return True, ""


def _user() -> int:
    return os.geteuid() if os.name == "posix" else 0


def _create(path: Path, mode: int) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _like(path: Path, before: os.stat_result) -> None:
    """Give a file the group, mode and owner of another as far as the system permits."""
    if os.name == "posix":
        with suppress(OSError):
            os.chown(path, -1, before.st_gid)
    with suppress(PermissionError):
        path.chmod(stat.S_IMODE(before.st_mode) & 0o777)
    if os.name == "posix":  # last: what is another's can be changed no more
        with suppress(OSError):
            os.chown(path, before.st_uid, -1)


def _sync(path: Path) -> None:
    """Bring a file or a folder to the disk."""
    if path.is_dir():
        with suppress(OSError):  # not every file system can
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        return
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _of_another_file(error: OSError | RuntimeError, temporary: Path) -> bool:
    """Whether an error is about a file that was read, not the one that is written."""
    if isinstance(error, FileNotFoundError) and error.errno is None:  # said by this package
        return True
    about = [str(name) for name in (getattr(error, "filename", None), getattr(error, "filename2", None)) if name]
    return bool(about) and not any(temporary.name in name for name in about)
