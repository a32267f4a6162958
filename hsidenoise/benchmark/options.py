"""The options of `hsidenoise benchmark`, each written once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hsidenoise.metrics.protocols import PROTOCOLS
from hsidenoise.system.options import REQUIRED, option


@dataclass(frozen=True)
class TableOptions:
    """Which table is made, what of it, and how."""

    config: str = option(
        REQUIRED, "table to make: the name of one in configs/tables, or a file of your own", metavar="NAME|FILE.yaml"
    )
    root: str | None = option(
        None, "folder of the cubes; that of the table if absent", metavar="FOLDER", flag="data.root"
    )
    methods: Sequence[str] | None = option(
        None,
        "only these: labels of the table, or noisy, a baseline, weights:NAME|FILE, package.module:function",
        metavar="NAME",
    )
    cases: Sequence[str] | None = option(None, "only these noise cases, or others", metavar="CASE")
    protocols: Sequence[str] | None = option(
        None,
        f"one or more of {', '.join(PROTOCOLS)}; by the table if absent",
        metavar="NAME",
        choices=tuple(PROTOCOLS),
        flag="protocol",
    )
    seed: int | None = option(None, "seed of the noise; that of the table if absent", least=0, metavar="N")
    out: str = option("results", "where to write", metavar="FOLDER")
    workers: int | None = option(None, "processes at a time; by cores and memory if absent", least=1, metavar="N")
    device: str | None = option(None, "where networks compute; a GPU if there is one", metavar="cpu|cuda")
    allow_leaks: bool = option(
        False, "show weights that were trained on a scene under test, marked and unranked, instead of refusing"
    )
    fresh: bool = option(False, "compute finished cells again")
    no_code: bool = option(False, "refuse methods package.module:function, before anything is imported")
