"""What a table consists of before anything is computed: its scenes, its cells, and whether it may show them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hsidenoise.benchmark.cells import Given, Job, version_of
from hsidenoise.benchmark.config import NOISY_SET, Data, TableConfig
from hsidenoise.benchmark.published import published_lines
from hsidenoise.data.datasets import Split, find_split, plain_name, read_split, scene_name
from hsidenoise.data.noisy_sets import find_noisy_set
from hsidenoise.data.scenes import NEEDED, cubes_in, scenes_for_tests, scenes_under, some_of
from hsidenoise.data.sources import digest_of
from hsidenoise.inference.method import Method
from hsidenoise.noise.cases import noise_case


@dataclass(frozen=True)
class Scene:
    """One scene.

    Attributes:
        name: Its name, without ending.
        files: Noise case -> file or folder of the clean cube, or of the pair; a case that it is not tested under is
            absent.
    """

    name: str
    files: Mapping[str, Path]


def find_table_scenes(data: Data, cases: Sequence[str] | None) -> tuple[Scene, ...]:
    """Find the scenes that a table is of.

    Where a published split has one test list for Gaussian noise and another for complex noise (ICVL of QRNN3D), each
    case takes its own.

    Args:
        data: Where they are. A folder is read from its sub-folder named like the part if there is one, else whole.
        cases: Noise cases; None, of a noisy set, for all that it has.

    Returns:
        Scenes in the order of the published list, else sorted by name.

    Raises:
        ValueError: If there is none, a scene of a split is missing, or a noisy set lacks a case.
        FileNotFoundError: If there is no such folder.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as root:
        ...     for name in ("oak.mat", "fir.mat"):
        ...         Path(root, name).touch()
        ...     [scene.name for scene in find_table_scenes(Data(root=root), ["blind"])]
        ['fir', 'oak']
    """
    root = Path(data.root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; --data.root names the folder of the cubes")
    found = _found(root, data, cases)
    if data.scenes is None:
        return found
    known = {scene_name(scene.name): scene for scene in found}
    for name in data.scenes:
        if scene_name(name) not in known:
            raise ValueError(f"{root}: there is no scene '{name}'; there are {', '.join(known)}")
    return tuple(known[scene_name(name)] for name in data.scenes)


def _found(root: Path, data: Data, cases: Sequence[str] | None) -> tuple[Scene, ...]:
    if data.dataset == NOISY_SET:
        return _of_noisy_set(root, cases)
    if not cases:
        raise ValueError("no noise case is named; only a noisy set says itself which it has")
    split = find_split(data.dataset, data.split)
    return _of_folder(root, data.part, cases) if split is None else _of_split(root, split, data, cases)


def _of_noisy_set(root: Path, cases: Sequence[str] | None) -> tuple[Scene, ...]:
    found = dict(find_noisy_set(root))
    for case in cases or ():
        if case not in found:
            raise ValueError(f"{root}: this noisy set has no case '{case}'; it has {', '.join(found)}")
    files: dict[str, dict[str, Path]] = {}
    for case in cases or found:
        for path in found[case]:
            files.setdefault(path.stem, {})[case] = path
    return tuple(Scene(name, files[name]) for name in sorted(files))


def _of_folder(root: Path, part: str, cases: Sequence[str]) -> tuple[Scene, ...]:
    names = {"validation": ("validation", "val")}.get(part, (part,))
    folders = [root / name for name in names if (root / name).is_dir()]
    if part == "all":
        folders = [root / name for name in ("train", "validation", "val", "test") if (root / name).is_dir()]
    found = [path for folder in folders or [root] for path in cubes_in(folder)]
    paths = sorted(found, key=lambda path: (path.name, path))
    if not paths:
        raise ValueError(f"{root}: no cube found in it; {NEEDED}")
    return _scenes([(path, cases) for path in paths], root)


def _of_split(root: Path, split: Split, data: Data, cases: Sequence[str]) -> tuple[Scene, ...]:
    train = list(read_split(split.train))
    validation = list(read_split(split.validation)) if split.validation else train[len(train) - split.held_out :]
    held = {scene_name(name) for name in validation}
    lists: list[tuple[Sequence[str], Sequence[str]]] = []
    if data.part in ("train", "all"):
        lists.append(([name for name in train if scene_name(name) not in held], cases))
    if data.part in ("validation", "all"):
        lists.append((validation, cases))
    if data.part in ("test", "all"):
        lists += scenes_for_tests(split, cases)
    known = scenes_under(root)
    wanted = [(name, own) for names, own in lists for name in names if own]
    if data.scenes is not None:  # the others need not be there
        only = {scene_name(name) for name in data.scenes}
        wanted = [(name, own) for name, own in wanted if scene_name(name) in only] or wanted
    names = list(dict.fromkeys(name for name, _ in wanted))
    absent = [name for name in names if scene_name(name) not in known]
    if absent:
        text = f"{root}: {len(absent)} scene(s) of the split of {split.source} are missing ({some_of(absent, most=3)})"
        if len(absent) == len(names):
            raise ValueError(f"{text}, and no other is there; --data.root names the folder of the cubes")
        if data.missing == "error":
            raise ValueError(f"{text}; get them, or write `missing: skip` under `data` of the table to leave them out")
        warnings.warn(f"{text} and left out", stacklevel=3)
    return _scenes([(known[scene_name(name)], own) for name, own in wanted if scene_name(name) in known], root)


def _scenes(found: Sequence[tuple[Path, Sequence[str]]], root: Path) -> tuple[Scene, ...]:
    files: dict[str, dict[str, Path]] = {}
    for path, cases in found:
        name = plain_name(path)
        for case in cases:
            if files.setdefault(name, {}).setdefault(case, path) != path:
                raise ValueError(f"{root}: {path.name} is there twice; keep one")
    return tuple(Scene(name, of_scene) for name, of_scene in files.items())


LEAK = "LEAK"


@dataclass(frozen=True)
class Plan:
    """What a table consists of.

    Attributes:
        jobs: (label, scene, case) -> what to compute, and the name of its files.
        cases: Noise cases, in the order of the columns.
        scenes: Scenes under test.
    """

    jobs: dict[tuple[str, str, str], tuple[Job, str]]
    cases: tuple[str, ...]
    scenes: tuple[Scene, ...]


def plan_table(config: TableConfig, device: str) -> Plan:
    """Find the scenes of a table and name every cell, before anything is computed.

    Raises:
        ValueError: If a method, a noise case or a published line is unknown, or no scene is found.
        ImportError: If a method needs a package that is not installed.
    """
    for method in config.methods:
        if not method.on_device:  # a network is read for its version, below
            method.prepare()
    scenes = find_table_scenes(config.data, config.cases)
    cases = config.cases or tuple(dict.fromkeys(case for scene in scenes for case in scene.files))
    pair = config.data.dataset == NOISY_SET
    if not pair:
        for case in cases:
            noise_case(case)
    if config.efficiency is not None and config.efficiency not in cases:
        raise ValueError(f"efficiency: the case '{config.efficiency}' is none of {', '.join(cases)}")
    if config.efficiency is not None and not any(method.computes for method in config.methods):
        raise ValueError("efficiency: there is no method but the noisy input to plot")
    if config.published:
        published_lines(config.published, cases=cases)  # for its errors
    versions = {method.name: version_of(method) for method in config.methods}
    digests = {path: digest_of(path) for scene in scenes for path in scene.files.values()}
    jobs = {}
    for scene in scenes:
        for case in cases:
            if case not in scene.files:
                continue
            for method in config.methods:
                path = scene.files[case]
                job = Job(
                    method.name,
                    dict(method.options),
                    scene.name,
                    str(path),
                    pair,
                    case,
                    config.seed,
                    config.data.crop,
                    config.data.bands,
                    config.data.key,
                    config.protocols,
                    device if method.on_device else None,
                )
                name = job.identity(versions[method.name], digests[path])
                jobs[method.label, scene.name, case] = job, name
    return Plan(jobs, cases, scenes)


def leaks(methods: Sequence[Method], scenes: Sequence[Scene], allow: bool) -> dict[str, tuple[str, ...]]:
    """Marks of the methods whose weights have seen a scene under test, by label.

    Raises:
        ValueError: If weights were trained on a scene under test and that is not allowed.
    """
    marks, tested = {}, {scene_name(scene.name) for scene in scenes}
    for method in methods:
        trained, chosen = ([name for name in names if name in tested] for names in method.seen_scenes())
        if trained and not allow:
            raise ValueError(
                f"{method.name} were trained on {', '.join(trained)}, which the table would test them on; take other "
                "scenes or weights, or --allow-leaks to show the line marked and unranked"
            )
        texts = [f"{LEAK}: trained on {', '.join(trained)}"] if trained else []
        if chosen:
            texts.append(f"chosen by its scores on {', '.join(chosen)}")
        if texts:
            marks[method.label] = tuple(texts)
    return marks


def marked(label: str, marks: Mapping[str, tuple[str, ...]]) -> str:
    """A label for the figures."""
    return f"{label} (LEAK)" if any(mark.startswith(LEAK) for mark in marks.get(label, ())) else label


def shown_cells(config: TableConfig, plan: Plan) -> dict[str, str]:
    """Label -> name of the cell whose cube the figures need."""
    figure = config.figure
    if figure is None:
        return {}
    names = [scene.name for scene in plan.scenes if figure.case in scene.files]
    if not names:
        raise ValueError(f"figure: no scene has the case '{figure.case}'")
    scene = names[0]
    if figure.scene is not None:
        known = {scene_name(name): name for name in names}
        if scene_name(figure.scene) in known:
            scene = known[scene_name(figure.scene)]
        else:
            warnings.warn(
                f"figure: no scene '{figure.scene}' of the case '{figure.case}'; it shows {scene}", stacklevel=3
            )
    labels = figure.methods or tuple(method.label for method in config.methods)
    return {label: plan.jobs[label, scene, figure.case][1] for label in labels}


def first_pair(plan: Plan) -> Given:
    """Noisy and clean cube of the first cell."""
    job, _ = next(iter(plan.jobs.values()))
    return job.given()
