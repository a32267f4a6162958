"""What a table consists of before anything is computed: its cells, and whether it may show them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hsidenoise.benchmark.cells import Given, Job, read_given, version_of
from hsidenoise.benchmark.config import NOISY_SET, TableConfig
from hsidenoise.benchmark.published import published_lines
from hsidenoise.benchmark.scenes import Scene, find_table_scenes
from hsidenoise.data.datasets import scene_name
from hsidenoise.inference.method import Method
from hsidenoise.noise.cases import noise_case
from hsidenoise.system.files import sha256

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

    Args:
        config: What the table is of.
        device: Where networks will run.

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
    digests = {path: sha256(path) for scene in scenes for path in scene.files.values()}
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
                    config.data.key,
                    config.protocols,
                    device if method.on_device else None,
                )
                name = job.identity(versions[method.name], digests[path])
                jobs[method.label, scene.name, case] = job, name
    return Plan(jobs, cases, scenes)


def leaks(methods: Sequence[Method], scenes: Sequence[Scene], allow: bool) -> dict[str, tuple[str, ...]]:
    """Marks of the methods whose weights have seen a scene under test, by label.

    Args:
        methods: Methods of the table.
        scenes: Scenes under test.
        allow: Whether weights that were trained on one are marked instead of refused.

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
    return read_given(job.source, job.pair, job.case, job.seed, job.crop, job.key)
