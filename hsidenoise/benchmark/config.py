"""What a table is of: scenes, noise cases, methods and protocols, as a YAML file in ``configs/tables`` says it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Any, Literal

from hsidenoise.benchmark.options import TableOptions
from hsidenoise.data.datasets import DATASETS
from hsidenoise.inference.method import Method, make_method
from hsidenoise.metrics.protocols import PROTOCOLS
from hsidenoise.system.files import packaged
from hsidenoise.system.options import Missing, checked, from_mapping, option
from hsidenoise.system.yaml_text import read_yaml

NOISY_SET = "noisy-set"
"""Name of the data set of noisy cubes in the published layout (:mod:`hsidenoise.data.noisy_sets`)."""

MOST = 2**20
"""Largest number of pixels along an axis, or of bands, that a configuration may name."""


@dataclass(frozen=True)
class Data:
    """Where the scenes are.

    Attributes:
        dataset: Name in :data:`hsidenoise.data.datasets.DATASETS`, or :data:`NOISY_SET` for files that hold the noise.
        root: Folder.
        split: Name of a published split; the data set's first if None.
        part: Part of the split: test, validation, train or all. A folder without sub-folders is taken whole.
        crop: Side of the centre square in pixels; None for whole scenes.
        bands: So many bands of each scene, evenly spaced: a sensor of few bands. None for all.
        key: Variable of the clean cube, where a file has several.
        missing: What to do about scenes of a split that are not there: "error" or "skip".
        scenes: Only these; all if None.
    """

    dataset: str = option("folder", choices=(*DATASETS, NOISY_SET))
    root: str = "data"
    split: str | None = None
    part: Literal["test", "validation", "train", "all"] = "test"
    crop: int | None = option(None, least=1, most=MOST)
    bands: int | None = option(None, least=1, most=MOST)
    key: str | None = None
    missing: Missing = "error"
    scenes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Shown:
    """What the figures show.

    Attributes:
        case: Noise case.
        scene: Scene; the first if None.
        methods: Labels of methods; all if None.
        band: Band, 0-based; the one in which noise hurts most if None.
        pixel: Row and column whose spectrum is drawn; found if None.
        inset: Row, column and side of the enlarged square; found if None.
    """

    case: str
    scene: str | None = None
    methods: tuple[str, ...] | None = None
    band: int | None = option(None, least=0, most=MOST)
    pixel: tuple[int, int] | None = option(None, least=0, most=MOST)
    inset: tuple[int, int, int] | None = option(None, least=0, most=MOST)


@dataclass(frozen=True)
class TableConfig:
    """One table.

    Attributes:
        name: Name of its folder of results.
        title: Heading.
        data: Where the scenes are.
        methods: Lines.
        cases: Noise cases. None, of a noisy set: all that it has.
        protocols: Protocols of the metrics; a table is made for each.
        seed: Seed of the noise, the same for every scene.
        figure: What the figures show; None for none.
        efficiency: Noise case whose PSNR is plotted against cost; None for no such plot.
        published: Methods of ``published.csv`` to show beside; empty for none.
        notes: Sentences below the table.

    Raises:
        ValueError: If a name occurs twice, or one value does not go with another.
    """

    name: str
    title: str
    data: Data
    methods: tuple[Method, ...]
    cases: tuple[str, ...] | None = None
    protocols: tuple[str, ...] = option(("standard",), choices=tuple(PROTOCOLS))
    seed: int = option(0, least=0, most=2**63 - 1)
    figure: Shown | None = None
    efficiency: str | None = None
    published: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        data, cases, figure = self.data, self.cases, self.figure
        if cases is None and data.dataset != NOISY_SET:
            raise ValueError("'cases' is missing; only a noisy set says itself which it has")
        for key in ("crop", "bands", "key", "split"):
            if data.dataset == NOISY_SET and getattr(data, key) is not None:
                raise ValueError(f"data.{key}: a noisy set is taken as it is; leave it out")
        labels = [method.label for method in self.methods]
        shown = labels if figure is None or figure.methods is None else figure.methods
        for what, names in (("scene", data.scenes), ("case", cases), ("method", labels), ("protocol", self.protocols)):
            _different(names, what)
        for what, case in (("figure", figure and figure.case), ("efficiency", self.efficiency)):
            if case is not None and cases is not None and case not in cases:
                raise ValueError(f"{what}: the case '{case}' is none of the table")
        if unknown := set(_different(shown, "method")) - set(labels):
            raise ValueError(f"figure: there is no method '{min(unknown)}' in the table")


def read_config(path: str | Path) -> TableConfig:
    """Read the configuration of a table.

    Args:
        path: Name of a table that comes with the package, or a YAML file with the attributes of :class:`TableConfig`.
            A method is a name, or a mapping with ``method``
            and perhaps ``label`` and options.

    Raises:
        ValueError: If it is not a YAML file, a name is unknown, or a value does not fit; in one line.
        OSError: If it cannot be read.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> text = "{title: Two methods, data: {root: cubes}, cases: [blind], methods: [noisy, svd-tv]}"
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "two.yaml")
        ...     _ = path.write_text(text)
        ...     config = read_config(path)
        >>> config.name, [method.label for method in config.methods]
        ('two', ['noisy', 'svd-tv'])
    """
    path = packaged(path, "configs/tables", ".yaml")
    found = read_yaml(path)
    try:
        return from_mapping(TableConfig, found, "", {Method: _method}, name=path.stem)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def with_choice(config: TableConfig, options: TableOptions) -> TableConfig:
    """A configuration with some of its choices made otherwise; what is None stays.

    Args:
        config: What the file says.
        options: What is chosen of it: root, methods (labels of its own, or further ones), cases, protocols, seed.

    Raises:
        ValueError: If a name is unknown.
    """
    root, methods, cases = options.root, options.methods, options.cases
    changes: dict[str, Any] = {}
    if root is not None:
        changes["data"] = dataclasses.replace(config.data, root=root)
    if methods is not None:
        known = {method.label: method for method in config.methods}
        changes["methods"] = tuple(known.get(name) or _method(name, known) for name in methods)
        if config.figure is not None and config.figure.methods is not None:
            # those of the figure that are left, and what the table did not know
            shown = tuple(name for name in methods if name in config.figure.methods or name not in known)
            changes["figure"] = dataclasses.replace(config.figure, methods=shown or None)
    if cases is not None:
        changes["cases"] = tuple(cases)
        figure = changes.get("figure", config.figure)
        if figure is not None and figure.case not in cases:
            changes["figure"] = dataclasses.replace(figure, case=cases[0])
        if config.efficiency is not None and config.efficiency not in cases:
            changes["efficiency"] = cases[0]
    if options.protocols is not None:
        changes["protocols"] = checked(list(options.protocols), tuple[str, ...], "protocols", {"choices": PROTOCOLS})
    if options.seed is not None:
        changes["seed"] = checked(options.seed, int, "seed", {"least": 0})
    return dataclasses.replace(config, **changes)


def refuse_code(config: TableConfig) -> None:
    """Refuse a table with a method that is code of somebody's: before it is imported.

    Raises:
        ValueError: If a method is a ``package.module:function``.
    """
    for method in config.methods:
        if method.is_code:
            raise ValueError(
                f"the method '{method.name}' is code, which --no-code refuses; leave it out by --methods, or run the "
                "table without --no-code if you trust it"
            )


def _method(given: Any, others: Sequence[str] | Mapping[str, Any] = ()) -> Method:
    """A method as it is written down, its name checked as far as possible without loading anything."""
    values = {"method": given} if isinstance(given, str) else given
    if not isinstance(values, Mapping) or not isinstance(values.get("method"), str):
        raise ValueError(f"{short(given)} is not a method: write its name, or a mapping with 'method'")
    method, label = values["method"], values.get("label", values["method"])
    if not isinstance(label, str):
        raise ValueError(f"method '{method}': label is {short(label)}; it is a name")
    options = {key: value for key, value in values.items() if key not in ("method", "label")}
    return make_method(method, label, options, others=others)


def _different(names: Sequence[str] | None, what: str) -> Sequence[str]:
    if names is None:
        return ()
    if not names:
        raise ValueError(f"no {what} is named")
    twice = next((name for position, name in enumerate(names) if name in names[:position]), None)
    if twice is not None:
        raise ValueError(f"the {what} '{twice}' is named twice; give one another label")
    return names
