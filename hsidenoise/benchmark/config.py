"""What a table is of: scenes, noise cases, methods and protocols, as a YAML file in ``configs/tables`` says it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as _short
from typing import Any

from hsidenoise.data.datasets import DATASETS
from hsidenoise.inference.method import Method, make_method
from hsidenoise.metrics.protocols import PROTOCOLS
from hsidenoise.system.files import packaged
from hsidenoise.system.yaml_text import read_yaml

NOISY_SET = "noisy-set"
"""Name of the data set of noisy cubes in the published layout (:mod:`hsidenoise.data.noisy_sets`)."""

PARTS = ("test", "validation", "train", "all")

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
        key: Variable of the clean cube, where a file has several.
        missing: What to do about scenes of a split that are not there: "error" or "skip".
        scenes: Only these; all if None.
    """

    dataset: str = "folder"
    root: str = "data"
    split: str | None = None
    part: str = "test"
    crop: int | None = None
    key: str | None = None
    missing: str = "error"
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
    band: int | None = None
    pixel: tuple[int, int] | None = None
    inset: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class TableConfig:
    """One table.

    Attributes:
        name: Name of its folder of results.
        title: Heading.
        data: Where the scenes are.
        cases: Noise cases. None, of a noisy set: all that it has.
        methods: Lines.
        protocols: Protocols of the metrics; a table is made for each.
        seed: Seed of the noise, the same for every scene.
        figure: What the figures show; None for none.
        efficiency: Noise case whose PSNR is plotted against cost; None for no such plot.
        published: Methods of ``published.csv`` to show beside; empty for none.
        notes: Sentences below the table.
    """

    name: str
    title: str
    data: Data
    cases: tuple[str, ...] | None
    methods: tuple[Method, ...]
    protocols: tuple[str, ...] = ("standard",)
    seed: int = 0
    figure: Shown | None = None
    efficiency: str | None = None
    published: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


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
        return _config(path.stem, found)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def with_choice(
    config: TableConfig,
    *,
    root: str | None = None,
    methods: Sequence[str] | None = None,
    cases: Sequence[str] | None = None,
    protocols: Sequence[str] | None = None,
    seed: int | None = None,
) -> TableConfig:
    """A configuration with some of its choices made otherwise; what is None stays.

    Args:
        config: What the file says.
        root: Folder of the scenes.
        methods: Labels of its methods, or methods that it does not have.
        cases: Noise cases.
        protocols: Protocols.
        seed: Seed of the noise.

    Raises:
        ValueError: If a name is unknown.
    """
    changes: dict[str, Any] = {}
    if root is not None:
        changes["data"] = dataclasses.replace(config.data, root=root)
    if methods is not None:
        known = {method.label: method for method in config.methods}
        chosen = tuple(known.get(name) or _method(name, known) for name in methods)
        _different([method.label for method in chosen], "method")
        changes["methods"] = chosen
        if config.figure is not None and config.figure.methods is not None:
            # those of the figure that are left, and what the table did not know
            shown = tuple(name for name in methods if name in config.figure.methods or name not in known)
            changes["figure"] = dataclasses.replace(config.figure, methods=shown or None)
    if cases is not None:
        changes["cases"] = tuple(_different(cases, "case"))
        figure = changes.get("figure", config.figure)
        if figure is not None and figure.case not in cases:
            changes["figure"] = dataclasses.replace(figure, case=cases[0])
        if config.efficiency is not None and config.efficiency not in cases:
            changes["efficiency"] = cases[0]
    if protocols is not None:
        changes["protocols"] = _protocols(protocols)
    if seed is not None:
        _check_seed(seed)
        changes["seed"] = seed
    return dataclasses.replace(config, **changes)


def refuse_code(config: TableConfig) -> None:
    """Refuse a table with a method that is code of somebody's: before it is imported.

    Args:
        config: What the table is of.

    Raises:
        ValueError: If a method is a ``package.module:function``.
    """
    for method in config.methods:
        if method.is_code:
            raise ValueError(
                f"the method '{method.name}' is code, which --no-code refuses; leave it out by --methods, or run the "
                "table without --no-code if you trust it"
            )


def _config(name: str, found: Any) -> TableConfig:
    values = _mapping(found, TableConfig, "a table", without=("name",))
    for key in ("title", "data", "methods"):
        if not values.get(key):
            raise ValueError(f"'{key}' is missing")
    for key in ("title", "efficiency"):
        if not isinstance(values.get(key), str | None):
            raise ValueError(f"{key} is {_short(values[key])}; it is a text")
    data = _data(values["data"])
    cases = values.get("cases")
    if cases is None and data.dataset != NOISY_SET:
        raise ValueError("'cases' is missing; only a noisy set says itself which it has")
    if cases is not None:
        cases = tuple(_different(_names(cases, "cases"), "case"))
    methods = tuple(_method(each) for each in _list(values["methods"], "methods"))
    labels = [method.label for method in methods]
    _different(labels, "method")
    figure = None if values.get("figure") is None else _shown(values["figure"], labels, cases)
    efficiency = values.get("efficiency")
    if efficiency is not None and cases is not None and efficiency not in cases:
        raise ValueError(f"efficiency: the case '{efficiency}' is none of the table")
    seed = values.get("seed", 0)
    _check_seed(seed)
    return TableConfig(
        name=name,
        title=values["title"],
        data=data,
        cases=cases,
        methods=methods,
        protocols=_protocols(_names(values.get("protocols", ["standard"]), "protocols")),
        seed=seed,
        figure=figure,
        efficiency=efficiency,
        published=_names(values.get("published") or [], "published"),
        notes=_names(values.get("notes") or [], "notes"),
    )


def _data(found: Any) -> Data:
    values = _mapping(found, Data, "data")
    if values.get("scenes") is not None:
        values["scenes"] = tuple(_different(_names(values["scenes"], "data.scenes"), "scene"))
    for key in ("dataset", "root", "split", "part", "key", "missing"):
        if key in values and not isinstance(values[key], str) and not (values[key] is None and key in ("split", "key")):
            raise ValueError(f"data.{key} is {_short(values[key])}; it is a name")
    crop = values.get("crop")
    if crop is not None and (type(crop) is not int or not 1 <= crop <= MOST):
        raise ValueError(f"data.crop is {_short(crop)}; it is a number of pixels, or left out")
    data = Data(**values)
    if data.dataset not in (*DATASETS, NOISY_SET):
        raise ValueError(f"unknown data set '{data.dataset}'; known: {', '.join((*DATASETS, NOISY_SET))}")
    if data.part not in PARTS:
        raise ValueError(f"unknown part '{data.part}' of the data; known: {', '.join(PARTS)}")
    if data.missing not in ("error", "skip"):
        raise ValueError(f"data.missing is '{data.missing}'; it is error or skip")
    for key in ("crop", "key", "split"):
        if data.dataset == NOISY_SET and getattr(data, key) is not None:
            raise ValueError(f"data.{key}: a noisy set is taken as it is; leave it out")
    return data


def _shown(found: Any, labels: Sequence[str], cases: Sequence[str] | None) -> Shown:
    values = _mapping(found, Shown, "figure")
    if not isinstance(values.get("case"), str):
        raise ValueError("figure: 'case' is missing")
    if values.get("methods") is not None:
        values["methods"] = tuple(_different(_names(values["methods"], "figure.methods"), "method"))
    if not isinstance(values.get("scene"), str | None):
        raise ValueError(f"figure: scene is {_short(values['scene'])}; it is a name")
    if values.get("band") is not None:
        (values["band"],) = _counts([values["band"]], 1, "figure: band is {}; it is a number, 0 or more")
    if values.get("pixel") is not None:
        values["pixel"] = _counts(values["pixel"], 2, "figure: pixel is {}; it is [row, column]")
    if values.get("inset") is not None:
        values["inset"] = _counts(values["inset"], 3, "figure: inset is {}; it is [row, column, side]")
    shown = Shown(**values)
    unknown = set(shown.methods or ()) - set(labels)
    if unknown:
        raise ValueError(f"figure: there is no method '{min(unknown)}' in the table")
    if cases is not None and shown.case not in cases:
        raise ValueError(f"figure: the case '{shown.case}' is none of the table")
    return shown


def _method(given: Any, others: Sequence[str] | Mapping[str, Any] = ()) -> Method:
    """A method as it is written down, its name checked as far as possible without loading anything."""
    values = {"method": given} if isinstance(given, str) else given
    if not isinstance(values, Mapping) or not isinstance(values.get("method"), str):
        raise ValueError(f"{_short(given)} is not a method: write its name, or a mapping with 'method'")
    method, label = values["method"], values.get("label", values["method"])
    if not isinstance(label, str):
        raise ValueError(f"method '{method}': label is {_short(label)}; it is a name")
    options = {key: value for key, value in values.items() if key not in ("method", "label")}
    return make_method(method, label, options, others=others)


def _mapping(found: Any, of: type, what: str, without: Sequence[str] = ()) -> dict[str, Any]:
    known = [each.name for each in dataclasses.fields(of) if each.name not in without]
    if not isinstance(found, Mapping):
        raise ValueError(f"{what} is to be a mapping with {', '.join(known)}")
    for key in found:
        if key not in known:
            raise ValueError(f"{what} has no '{key}'; known: {', '.join(known)}")
    return dict(found)


def _list(found: Any, what: str) -> list[Any]:
    if not isinstance(found, list):
        raise ValueError(f"'{what}' is to be a list, not {_short(found)}")
    return found


def _names(found: Any, what: str) -> tuple[str, ...]:
    for each in _list(found, what):
        if not isinstance(each, str) or not each.strip():
            raise ValueError(f"'{what}' is to be a list of names; {_short(each)} is none")
    return tuple(found)


def _counts(found: Any, number: int, message: str) -> Any:
    if (
        not isinstance(found, list)
        or len(found) != number
        or any(type(each) is not int or not 0 <= each <= MOST for each in found)
    ):
        raise ValueError(message.format(_short(found[0]).strip("'") if number == 1 else _short(found)))
    return tuple(found)


def _check_seed(seed: Any) -> None:
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise ValueError(f"seed is {_short(seed)}; it is a whole number, 0 or more")


def _protocols(names: Sequence[str]) -> tuple[str, ...]:
    for name in names:
        if name not in PROTOCOLS:
            raise ValueError(f"unknown protocol '{name}'; known: {', '.join(PROTOCOLS)}")
    return tuple(_different(names, "protocol"))


def _different(names: Sequence[str], what: str) -> Sequence[str]:
    if not names:
        raise ValueError(f"no {what} is named")
    twice = next((name for position, name in enumerate(names) if name in names[:position]), None)
    if twice is not None:
        raise ValueError(f"the {what} '{twice}' is named twice; give one another label")
    return names
