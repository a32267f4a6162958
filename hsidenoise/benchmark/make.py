"""From a table's configuration to its files: scenes, guard, cells in parallel, text and figures."""

from __future__ import annotations

import csv
import io
import json
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from hsidenoise.benchmark.cells import (
    package_version,
    read_cell,
    read_given,
    run_cells,
)
from hsidenoise.benchmark.config import NOISY_SET, TableConfig
from hsidenoise.benchmark.figures import EfficiencyPoint, comparison, efficiency, spectra
from hsidenoise.benchmark.plan import Plan, first_pair, leaks, marked, plan_table, shown_cells
from hsidenoise.benchmark.published import published_lines
from hsidenoise.benchmark.render import scenes_csv, to_csv, to_latex, to_markdown
from hsidenoise.benchmark.table import Line, Score, Table, mean_and_deviation
from hsidenoise.data.io import read_cube
from hsidenoise.data.scenes import evenly_spaced
from hsidenoise.inference.method import COUNTED, NOISY
from hsidenoise.system.code_version import libraries
from hsidenoise.system.files import check_target, commit, write_text
from hsidenoise.system.machine import describe_machine, find_device, free_memory, run_module, usable_cores

_PROCESS = 600e6
"""Memory of a process with PyTorch loaded, bytes."""

_CUBES = 25
"""Cubes that a method may hold at once: the classical ones have that many temporaries."""


def make_tables(
    config: TableConfig,
    folder: Path,
    *,
    workers: int | None = None,
    device: str | None = None,
    allow_leaks: bool = False,
    fresh: bool = False,
    command: str = "hsidenoise benchmark",
) -> list[Path]:
    """Compute what is missing of a table and write its files.

    Finished cells are kept in ``folder/cells`` under a hash of method, options, weights, code, case, scene, protocol,
    seed and crop, so that a run that was stopped goes on, and one that is repeated only writes.

    Args:
        config: What the table is of.
        folder: Where to write; made if missing. One table: ``table.md``, ``.csv``, ``.tex``, ``scenes.csv``; of several
            protocols ``table_<protocol>.md`` and so on; and the figures that the configuration asks for.
        workers: Processes at a time, each with one thread; by cores and memory if None. One on a GPU.
        device: Where networks run, such as ``cpu`` or ``cuda``; a GPU if there is one.
        allow_leaks: Whether weights may be shown that were trained on a scene under test; their line is marked then,
            and never ranked.
        fresh: Whether finished cells are computed again.
        command: How the table was asked for, for its head.

    Returns:
        The files written.

    Raises:
        ValueError: If a name is unknown, no scene is found, a scene leaks, or a method fails.
        OSError: If a file cannot be read or written.
    """
    folder = Path(folder)
    place = find_device(device)
    read_given.cache_clear()  # of an earlier table in this process: its files may have changed
    plan = plan_table(config, str(place))
    marks = leaks(config.methods, plan.scenes, allow_leaks)
    cells = folder / "cells"
    cells.mkdir(parents=True, exist_ok=True)
    for place_of in (folder / "scenes.csv", cells / "cell.json"):
        check_target(place_of)  # before the hours, not after
    shown = shown_cells(config, plan)
    jobs = list(plan.jobs.values())
    run_cells(jobs, cells, set(shown.values()), fresh=fresh, workers=_workers(plan, workers, place))
    costs = _costs(config, plan, cells, fresh)
    files = _figures(config, plan, cells, folder, shown, marks)
    tables = {protocol: _table(config, plan, cells, protocol, marks, costs, command) for protocol in config.protocols}
    texts: dict[str, str] = {}
    for protocol, table in tables.items():
        stem = "table" if len(tables) == 1 else f"table_{protocol}"
        texts |= {f"{stem}.md": to_markdown(table), f"{stem}.csv": to_csv(table), f"{stem}.tex": to_latex(table)}
        texts["scenes.csv" if len(tables) == 1 else f"scenes_{protocol}.csv"] = scenes_csv(table)
    for name, text in texts.items():
        write_text(folder / name, text)
    if config.efficiency is not None:
        files += _efficiency(config, plan, cells, folder, costs, marks)
    return [folder / name for name in texts] + files


def _workers(plan: Plan, asked: int | None, place: torch.device) -> int:
    if asked is not None or place.type == "cuda":
        return asked or 1
    given = first_pair(plan)
    need = _PROCESS + _CUBES * given.clean.nbytes
    free = free_memory(torch.device("cpu"))
    fits = max(1, int(free // need)) if free is not None else 1
    return min(usable_cores(), fits)


def _costs(config: TableConfig, plan: Plan, cells: Path, fresh: bool) -> dict[str, dict[str, Any]]:
    """Weights and operations of every method; for the plot of efficiency also seconds and memory, measured alone."""
    found: dict[str, dict[str, Any]] = {}
    alone = config.efficiency is not None
    for method in tqdm(config.methods, desc="costs", unit="method", file=sys.stderr, disable=not alone):
        # the scenes of a noisy set need not have the same cases
        jobs = [each for (label, _, _), each in plan.jobs.items() if label == method.label]
        job, name = next((each for each in jobs if each[0].case == config.efficiency), jobs[0])
        kept = read_cell(cells, f"cost-{name}")
        cost = {} if fresh or kept is None else dict(kept)
        if "parameters" not in cost:
            count = method.cost()
            cost["parameters"], cost["per_pixel"] = count if count is not None else (None, None)
        if alone and "seconds" not in cost and method.computes:
            with tempfile.TemporaryDirectory() as temporary:
                result = Path(temporary, "cost.json")
                try:
                    run_module("hsidenoise.benchmark.cells", json.dumps(asdict(job)), result, threads=1)
                except RuntimeError as error:
                    raise ValueError(f"{job.method} on {job.scene}, {job.case}: {error}") from error
                cost |= json.loads(result.read_text(encoding="utf-8"))
        if cost != kept:
            write_text(cells / f"cost-{name}.json", json.dumps(cost) + "\n")
        found[method.label] = cost
    return found


def _scores(plan: Plan, cells: Path, label: str, protocol: str) -> dict[str, tuple[Score, ...]]:
    found: dict[str, tuple[Score, ...]] = {}
    for case in plan.cases:
        for scene in plan.scenes:
            if (label, scene.name, case) not in plan.jobs:
                continue
            cell = read_cell(cells, plan.jobs[label, scene.name, case][1])
            if cell is None:
                raise OSError(f"{cells}: a finished cell of {label}, {scene.name}, {case} has gone; run it again")
            values = cell["scores"][protocol]
            score = Score(scene.name, values["psnr"], values["ssim"], values["sam"], cell["seconds"])
            found[case] = (*found.get(case, ()), score)
    return found


def _table(
    config: TableConfig,
    plan: Plan,
    cells: Path,
    protocol: str,
    marks: Mapping[str, tuple[str, ...]],
    costs: Mapping[str, Mapping[str, Any]],
    command: str,
) -> Table:
    pixels = first_pair(plan).clean[0].size
    lines = []
    for method in config.methods:
        per_pixel = costs[method.label]["per_pixel"]
        lines.append(
            Line(
                method.label,
                _scores(plan, cells, method.label, protocol),
                given_sigma=not method.blind,
                parameters=costs[method.label]["parameters"],
                gflop=None if per_pixel is None else per_pixel * pixels / 1e9,
                marks=marks.get(method.label, ()),
                is_input=not method.computes,
            )
        )
    notes = list(config.notes)
    if any(line.gflop is not None for line in lines):
        notes.append(
            f"GFLOP: products of one pass of the network over the bands that it takes at once, counted on "
            f"{COUNTED}x{COUNTED} pixels and scaled to a scene of {pixels} pixels; what tiles and windows of bands "
            f"overlap or repeat, the spectral estimate and the pilot filter come on top."
        )
    if len(config.protocols) > 1:
        notes.append(f"The same outputs as in the tables of the protocols {', '.join(config.protocols)}.")
    title = config.title if len(config.protocols) == 1 else f"{config.title}, protocol {protocol}"
    return Table(
        title,
        plan.cases,
        tuple(lines),
        _facts(config, plan, protocol, command),
        tuple(notes),
        published_lines(config.published, cases=plan.cases) if config.published else (),
        sam_unit="degrees" if protocol == "sert" else "radians",
    )


def _facts(config: TableConfig, plan: Plan, protocol: str, command: str) -> tuple[tuple[str, str], ...]:
    """The head of the page."""
    data = config.data
    crop = f"centre {data.crop}x{data.crop}" if data.crop else "whole"
    if data.bands:
        crop += f", {data.bands} band{'s' if data.bands > 1 else ''} of each"
    noise = "as in the files" if data.dataset == NOISY_SET else f"hsidenoise.corrupt, seed {config.seed} for each scene"
    facts = [
        ("command", command),
        ("commit", commit()),
        ("code", f"sha256 {package_version()[:16]} of the modules that scores depend on, found by their imports"),
        ("libraries", ", ".join(f"{name} {number}" for name, number in libraries().items())),
        ("data", f"{data.dataset}, {data.part}: {', '.join(scene.name for scene in plan.scenes)}; {crop}"),
        ("noise", noise),
        ("protocol", protocol),
    ]
    for method in config.methods:
        if described := method.description():
            facts.append((method.label, described))
    # the threads of this process, which computes nothing, say nothing
    return (*facts, ("machine", f"{describe_machine(threads=1)}; one thread for each cell"))


def _figures(
    config: TableConfig,
    plan: Plan,
    cells: Path,
    folder: Path,
    shown: Mapping[str, str],
    marks: Mapping[str, tuple[str, ...]],
) -> list[Path]:
    figure = config.figure
    if figure is None:
        return []
    chosen = {name for name in shown.values()}
    job = next(job for job, name in plan.jobs.values() if name in chosen)
    given = job.given()
    cubes = {label: np.load(cells / f"{name}.npy") for label, name in shown.items()}
    computed = {method.label for method in config.methods if method.computes}
    cubes = {NOISY: given.noisy} | {marked(label, marks): cube for label, cube in cubes.items() if label in computed}
    waves = None if job.pair else read_cube(job.source, key=job.key).wavelengths
    if waves is not None and job.bands is not None:
        waves = waves[evenly_spaced(len(waves), job.bands)]
    title = f"{config.title}: {job.scene}"
    pages = [folder / "comparison.png", folder / "spectra.png"]
    comparison(
        pages[0],
        given.clean,
        cubes,
        title=title,
        case=figure.case,
        wavelengths=waves,
        band=figure.band,
        pixel=figure.pixel,
        inset=figure.inset,
    )
    pixels = None if figure.pixel is None else [figure.pixel]
    spectra(pages[1], given.clean, cubes, title=title, case=figure.case, pixels=pixels, wavelengths=waves)
    return pages


def _efficiency(
    config: TableConfig,
    plan: Plan,
    cells: Path,
    folder: Path,
    costs: Mapping[str, Mapping[str, Any]],
    marks: Mapping[str, tuple[str, ...]],
) -> list[Path]:
    """Quality under one noise case against cost, and the numbers of the plot as a table."""
    case = config.efficiency or ""
    pixels = first_pair(plan).clean[0].size
    points = []
    for method in config.methods:
        cost = costs[method.label]
        scores = _scores(plan, cells, method.label, config.protocols[0]).get(case)
        if not method.computes or not scores:
            continue
        points.append(
            EfficiencyPoint(
                marked(method.label, marks),
                mean_and_deviation([score.psnr for score in scores])[0],
                cost["seconds"],
                None if cost["per_pixel"] is None else cost["per_pixel"] * pixels / 1e9,
                cost["parameters"],
                cost["memory_mb"],
            )
        )
    write_text(folder / "efficiency.csv", _points_csv(points))
    efficiency(folder / "efficiency.png", points, title=f"{config.title}: {case}, one thread")
    return [folder / "efficiency.csv", folder / "efficiency.png"]


def _points_csv(points: Iterable[EfficiencyPoint]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "psnr", "seconds", "gflop", "parameters", "memory_mb"])
    for point in points:
        values = (point.psnr, point.seconds, point.gflop, point.memory_mb)
        psnr, seconds, gflop, memory = ("" if value is None else f"{value:.6g}" for value in values)
        parameters = "" if point.parameters is None else point.parameters
        writer.writerow([point.label, psnr, seconds, gflop, parameters, memory])
    return text.getvalue()
