"""Making a noisy set in the published layout from clean cubes, so that it can be stopped, gone on with and trusted.

Every file carries in its header, and the set in ``noisy_set.json``, what it was made from and how. A set therefore
never mixes two seeds, crops, versions or collections of scenes without anybody noticing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64
from tqdm.auto import tqdm

from hsidenoise.data.datasets import DATASETS, Split, find_split, plain_name, scene_name
from hsidenoise.data.io import ABOUT, Cube, check_arrays_target, check_values, read_cube, write_arrays
from hsidenoise.data.layout import printable, times
from hsidenoise.data.noisy_sets import CLEAN_KEY, PUBLISHED_CASES, key_if_there, pair_files, published_arrays
from hsidenoise.data.options import CorruptOptions, NoisySetOptions, ReadOptions
from hsidenoise.data.scenes import NEEDED, clean_range, cubes_in, scenes_for_tests, scenes_under, some_of
from hsidenoise.data.sources import check_other, digest_of, locate
from hsidenoise.noise.cases import Corruption, NoiseCase, corrupt, noise_case
from hsidenoise.signal.mask import find_extremes
from hsidenoise.signal.scaling import centre_crop, to_unit_range
from hsidenoise.system.code_version import VERSION
from hsidenoise.system.files import check_source, check_target, write_text
from hsidenoise.system.options import takes_options, with_changes

#: File in the folder of a set that says how it was made.
MANIFEST = "noisy_set.json"

_SUFFIXES = {case: suffix for suffix, case in PUBLISHED_CASES.items()}
_Sources = dict[Path, tuple[str, ...]]  # clean cubes and the noise cases that each is for
_PARTS = ("train", "validation", "val", "test")


@dataclass(frozen=True)
class CaseFolder:
    """One folder of a noisy set that was made.

    Attributes:
        case: Name of the noise case.
        path: The folder.
        written: Number of files written now.
        kept: Number of finished files that were there already.
    """

    case: str
    path: Path
    written: int
    kept: int


@dataclass(frozen=True)
class CorruptedFile:
    """What :func:`corrupt_file` did.

    Attributes:
        cube: What was read.
        value_range: Smallest and largest value of the crop, before it was scaled.
        case: The noise case.
        result: The noisy cube, its noise level, and which bands have which noise.
        sigma_range: Smallest and largest noise level of a band, 0-255 scale.
    """

    cube: Cube
    value_range: tuple[float, float]
    case: NoiseCase
    result: Corruption
    sigma_range: tuple[float, float]


def corrupt_file(
    source: str | Path, target: str | Path, options: CorruptOptions, *, reading: ReadOptions | None = None
) -> CorruptedFile:
    """Write a noisy cube, its clean one and the noise level, as the published noisy sets do.

    What holds no data has no say in the scaling and is NaN in both.

    Args:
        source: File with a clean cube, or folder of PNG; of a pair, the clean cube is taken.
        target: ``.mat`` file to write; not the source.
        options: Noise and what is done before.
        reading: How the source is read.

    Warns:
        UserWarning: If values are no measurement or lie outside of [0, 1], or a kind of noise finds no band.

    Raises:
        ValueError: If there is no such noise case, or the cube cannot be read, cropped or scaled so.
        OSError: If a file cannot be read or written.
    """
    case, reading = noise_case(options.noise), reading or ReadOptions()
    source, key = locate(source, reading.key)
    target = Path(target)
    check_source(source)
    check_other(source, target, read=(reading.mask,))
    check_arrays_target(target)
    chosen = reading.by_name() | {"key": key or key_if_there(source, CLEAN_KEY)}
    cube = read_cube(source, **chosen, exact=True)
    name = str(source) if cube.layout is None else f"{source}: '{printable(cube.layout.key)}'"
    check_values(cube.values, name, cube.mask)
    clean = _cropped(cube.values, options.crop, source)
    valid = None if cube.mask is None else _cropped(cube.mask, options.crop, source)
    if valid is not None:
        if not valid.any():
            raise ValueError(f"{source}: nothing in the crop of {options.crop} holds data; choose another, or none")
        for kind in cube.not_data:
            warnings.warn(f"{kind}; NaN in what is written", stacklevel=2)
        clean = np.where(valid, clean, clean[valid].min())
    low, high = float(clean.min()), float(clean.max())
    if options.minmax:
        for found in find_extremes(clean).found:
            warnings.warn(f"{found}: no measurement, it seems, but an end of the range; replace it first", stacklevel=2)
        clean = to_unit_range(clean, str(source))[0]
    clean = clean.astype(np.float32, copy=False)
    result = corrupt(clean, case, seed=options.seed)
    for kind, bands in result.affected.items():
        if not len(bands):
            warnings.warn(
                f"{kind} on no band: it takes a third of the bands, and {len(clean)} are too few", stacklevel=2
            )
    if valid is not None:
        noisy, clean = (np.where(valid, values, np.float32(np.nan)) for values in (result.noisy, clean))
        result = dataclasses.replace(result, noisy=noisy)
    write_arrays(target, published_arrays(result.noisy, clean, result.sigma, cube.wavelengths))
    sigma = result.sigma * 255
    return CorruptedFile(cube, (low, high), case, result, (float(sigma.min()), float(sigma.max())))


@takes_options(NoisySetOptions)
def make_noisy_set(
    source: str | Path,
    target: str | Path,
    options: NoisySetOptions | None = None,
    *,
    progress: bool = False,
    **changes: Any,
) -> tuple[CaseFolder, ...]:
    """Write a noisy set in the published layout from a folder of clean cubes.

    Each file holds what ``hsidenoise corrupt`` writes for that scene, case, seed and crop: the centre of the scene,
    scaled to [0, 1] by its smallest and largest value, and the noise not clipped. A file appears whole or not at all,
    and a second call goes on where the first was interrupted; equal calls give equal bytes. ``noisy_set.json`` in
    the target says how the set was made, and a call that would mix it with anything else is refused.

    A case may be what a published folder ends in, such as ``30``; a later call may add cases. ``folder`` takes every
    cube directly in the source (or in its sub-folder ``test``); the other data sets take the test scenes of a published
    split, wherever they lie under the source.

    Args:
        source: Folder of clean cubes.
        target: Folder to write to; made if missing.
        options: The options together; the defaults if None.
        progress: Show a bar on stderr.
        **changes: Options by name:

    Returns:
        The folders, in the order of ``cases``.

    Raises:
        ValueError: If a name is unknown, a scene cannot be used or is smaller than the crop, scenes are missing, or
            the target holds a set that was made otherwise. Nothing is written then.
        OSError: If a folder is missing or a file cannot be read or written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as name:
        ...     source, target = Path(name, "trees"), Path(name, "sets")
        ...     source.mkdir()
        ...     write_arrays(source / "oak.mat", {"cube": np.arange(360.0).reshape(9, 10, 4)})
        ...     folders = make_noisy_set(source, target, cases=["gaussian-30", "non-iid"], crop=8)
        ...     [str(path.relative_to(target)) for path in sorted(target.rglob("*.mat"))]
        ['trees_8_30/oak.mat', 'trees_8_noniid/oak.mat']
    """
    source, target = Path(source).expanduser(), Path(target).expanduser()
    options = with_changes(options or NoisySetOptions(), changes, "make_noisy_set")
    cases, crop, seed, prefix = options.cases, options.crop or None, options.seed, options.prefix
    dataset, split, missing = options.dataset, options.split, options.missing
    if crop is not None and crop < 1:
        raise ValueError(f"crop {crop}: give the side of the square in pixels, or 0 for whole scenes")
    names = list(dict.fromkeys(noise_case(PUBLISHED_CASES.get(c, c)).name for c in cases or _SUFFIXES))
    published = find_split(dataset, split)
    scenes = _find_sources(source, published, missing, names)
    prefix = _default_prefix(source, dataset, crop) if prefix is None else prefix
    if not prefix or prefix != Path(prefix).name or prefix.startswith("."):
        raise ValueError(f"prefix '{prefix}': it is the beginning of a folder's name, such as cave_512")
    key, splits = DATASETS[dataset].key, DATASETS[dataset].splits
    split = next(iter(splits), None) if split is None else split
    _check_place(target, {path.parent for path in scenes} | ({source} if splits else set()), searched=bool(splits))

    digests, known = {}, _read_manifest(target)
    for path in tqdm(scenes, desc="check", unit="scene", disable=not progress, file=sys.stderr):
        check_source(path)
        digests[path] = digest_of(path, ending="" if path.suffix.lower() == ".zarr" else ".png")
        if known is None:  # else this was done before anything was written
            _read_clean(path, key, crop)
    made = {"hsidenoise": VERSION, "seed": seed, "crop": crop, "prefix": prefix, "dataset": dataset, "split": split}
    wanted: dict[str, Any] = made | {
        "cases": names,
        "scenes": {plain_name(path): {"source": path.name, "sha256": digests[path]} for path in scenes},
    }
    if known is not None:
        _check_same(target, known, wanted)
        wanted["cases"] = [*known["cases"], *(case for case in names if case not in known["cases"])]

    folders = {case: target / f"{prefix}_{_SUFFIXES.get(case, case)}" for case in names}
    stamps = {
        folders[case] / f"{plain_name(path)}.mat": _stamp(made, case, digests[path])
        for path, own in scenes.items()
        for case in own
    }
    done = _finished(folders.values(), stamps)
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    if known != wanted:
        _write_manifest(target, wanted)
    with tqdm(total=len(stamps), initial=len(done), desc="make", unit="file", disable=not progress) as bar:
        for path, own in scenes.items():
            files = {case: folders[case] / f"{plain_name(path)}.mat" for case in own}
            if done.issuperset(files.values()):
                continue
            clean, wavelengths = _read_clean(path, key, crop)
            for case, file in files.items():
                if file not in done:
                    _write_pair(file, clean, wavelengths, case, seed, stamps[file])
                    bar.update()
    counts = {folder: sum(file.parent == folder for file in done) for folder in folders.values()}
    total = {folder: sum(file.parent == folder for file in stamps) for folder in folders.values()}
    return tuple(CaseFolder(case, path, total[path] - counts[path], counts[path]) for case, path in folders.items())


def _default_prefix(source: Path, dataset: str, crop: int | None) -> str:
    whole = source.resolve()
    name = dataset if DATASETS[dataset].splits else (whole.parent if whole.name in _PARTS else whole).name
    return f"{name or 'set'}_{crop}" if crop else name or "set"


def _find_sources(source: Path, split: Split | None, missing: str, cases: Sequence[str]) -> _Sources:
    """Find the scenes, in the order of their list or sorted."""
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: no such folder; name that of the clean cubes")
    if split is not None:
        found = _split_sources(source, split, missing, cases)
    else:
        test = source / "test"
        found = dict.fromkeys(cubes_in(source) or (cubes_in(test) if test.is_dir() else []), tuple(cases))
        for name in sorted(scene_name(path) for path in found):
            same = [path.name for path in found if scene_name(path) == name]
            if len(same) > 1:
                raise ValueError(f"{source}: {' and '.join(same)} have the same scene name; keep one")
    if not any(found.values()):
        raise ValueError(f"{source}: no cube for the noisy set found; {NEEDED}")
    return found


def _split_sources(source: Path, split: Split, missing: str, cases: Sequence[str]) -> _Sources:
    known, absent = scenes_under(source), []
    found: _Sources = {}
    for names, own in scenes_for_tests(split, cases):
        for name in names:
            if scene_name(name) in known:
                # also without a case now: which scenes there are must not depend on the cases asked for
                found[known[scene_name(name)]] = own
            elif own:
                absent.append(name)
    if absent:
        text = f"{source}: {len(absent)} test scene(s) of the split are missing ({some_of(absent)})"
        if missing == "error":
            raise ValueError(f"{text}; get them, or leave them out with --missing skip")
        if any(found.values()):
            warnings.warn(f"{text} and left out", stacklevel=4)
    return found


def _read_clean(
    path: Path, key: str | None, crop: int | None
) -> tuple[Float32[np.ndarray, "bands height width"], Float64[np.ndarray, " bands"] | None]:
    """Centre of a clean cube scaled to [0, 1], and its wavelengths."""
    cube = read_cube(path, key=key or key_if_there(path, CLEAN_KEY), exact=True)
    mask = None if cube.mask is None else _cropped(cube.mask, crop, path)
    if mask is not None and not mask.any(axis=(1, 2)).all():  # published files have all of the bands
        raise ValueError(f"{path}: bands without data ({'; '.join(cube.not_data)}); leave them out of the file")
    cropped = dataclasses.replace(cube, values=_cropped(cube.values, crop, path), mask=mask)
    return clean_range(cropped, str(path)), cube.wavelengths


def _cropped(values: np.ndarray, crop: int | None, path: Path) -> np.ndarray:
    if crop is None:
        return values
    if crop > min(values.shape[1:]):
        sizes = times(values.shape[1:])
        raise ValueError(f"{path}: {sizes} pixels are less than the crop of {crop}; choose less, or none")
    return centre_crop(values, crop)


def _write_pair(
    file: Path,
    values: Float32[np.ndarray, "bands height width"],
    wavelengths: Float64[np.ndarray, " bands"] | None,
    case: str,
    seed: int,
    stamp: bytes,
) -> None:
    result = corrupt(values, case, seed=seed)
    idle = [kind for kind, bands in result.affected.items() if not len(bands)]
    if idle:
        warnings.warn(f"{case}: {' and '.join(idle)} on no band: {len(values)} bands are too few", stacklevel=3)
    write_arrays(file, published_arrays(result.noisy, values, result.sigma, wavelengths), about=stamp)


def _stamp(made: Mapping[str, Any], case: str, digest: str) -> bytes:
    """Text for the header of a file, in place of the date: what it was made from and how."""
    of = {name: made[name] for name in ("hsidenoise", "seed", "crop")} | {"case": case, "clean": digest}
    mark = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:16]
    length = ABOUT.stop - ABOUT.start
    text = f", hsidenoise {mark} {case}, seed {made['seed']}, crop {made['crop']}, {made['hsidenoise']}"
    return text.encode("ascii", "replace")[:length].ljust(length)


def _finished(folders: Iterable[Path], stamps: Mapping[Path, bytes]) -> set[Path]:
    """Files that are there already; anything else in these folders would become part of the set unnoticed."""
    done: set[Path] = set()
    for folder in folders:
        for path in pair_files(folder) if folder.is_dir() else ():
            with path.open("rb") as stream:
                stamp = stream.read(128)[ABOUT]
            if stamps.get(path) != stamp:
                raise ValueError(f"{path}: was not made by this command with these options; name another target folder")
            done.add(path)
    return done


def _check_place(target: Path, sources: set[Path], *, searched: bool) -> None:
    inner = target.resolve()
    for source in sorted(sources):
        outer = source.resolve()
        if inner == outer or (searched and inner.is_relative_to(outer)):
            raise ValueError(f"{target}: clean cubes are looked for there ({source}); name a folder outside of it")
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"cannot write {target}: it is a file; name a folder")
    probe = target / MANIFEST
    while not probe.parent.exists():
        probe = probe.parent
    check_target(probe)


def _read_manifest(target: Path) -> dict[str, Any] | None:
    path = target / MANIFEST
    if not path.exists():
        return None
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return manifest | {"cases": list(manifest["cases"]), "scenes": dict(manifest["scenes"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: does not say how the set was made (damaged?); remove it or name another target folder"
        ) from error


def _check_same(target: Path, known: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name in wanted:
        if name in ("cases", "scenes") or known.get(name) == wanted[name]:
            continue
        raise ValueError(
            f"{target}: holds a noisy set with {name} {known.get(name)}, not {wanted[name]}; name another target folder"
        )
    for scene in sorted({*known["scenes"], *wanted["scenes"]}):
        if known["scenes"].get(scene) != wanted["scenes"].get(scene):
            how = "differs" if scene in known["scenes"] and scene in wanted["scenes"] else "is not in both"
            raise ValueError(
                f"{target}: holds a noisy set of other clean cubes (scene '{scene}' {how}); name another target folder"
            )


def _write_manifest(target: Path, manifest: Mapping[str, Any]) -> None:
    write_text(target / MANIFEST, json.dumps(manifest, indent=2) + "\n")
