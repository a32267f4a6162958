"""Numbers that other papers printed, as data: ``configs/tables/published.csv``, each row with its source.

They stand beside measured ones to show the order of magnitude. They were made of other images, by other code and
often under another protocol, so that no table ranks them (:class:`hsidenoise.benchmark.table.PublishedLine`).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from hsidenoise.benchmark.table import PublishedLine

_HERE = Path(__file__).resolve().parents[1] / "configs" / "tables" / "published.csv"


@dataclass(frozen=True)
class PublishedRow:
    """One row of the file: one method under one noise case.

    Attributes:
        method: Name of the method.
        dataset: Data set it was tested on.
        crop: Size of the test images, such as "512x512".
        protocol: Row of :data:`hsidenoise.metrics.functional.PROTOCOLS` behind the numbers; empty where it is not
            known.
        case: Noise case, named as in :data:`hsidenoise.noise.cases.NOISE_CASES`.
        psnr: In dB.
        ssim: None where it is not printed, or not under a known protocol.
        sam: In the unit of the protocol ("sert": degrees, all others: radians); None likewise.
        params_m: Millions of weights, as printed.
        gflop: Cost of one 512x512 cube, as printed.
        caveat: Why this row cannot be held against the others of its data set; empty if it can.
        source: Where the number was read.
    """

    method: str
    dataset: str
    crop: str
    protocol: str
    case: str
    psnr: float
    ssim: float | None
    sam: float | None
    params_m: float | None
    gflop: float | None
    caveat: str
    source: str


_COLUMNS = tuple(field.name for field in fields(PublishedRow))
_TEXTS = ("method", "dataset", "case", "source")
_NUMBERS = ("psnr", "ssim", "sam", "params_m", "gflop")


def read_published(path: str | Path | None = None) -> tuple[PublishedRow, ...]:
    r"""Read the published numbers.

    Args:
        path: The CSV file; the one of the repository that the package lies in if absent.

    Returns:
        All rows, in the order of the file.

    Raises:
        OSError: If the file cannot be read, as in an installed package, which carries no ``configs``.
        ValueError: If a column is missing, a number is none, a source is missing, or two rows of a method and case
            disagree in PSNR.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "numbers.csv")
        ...     _ = path.write_text(",".join(_COLUMNS) + "\nSERT,ICVL,512x512,sert,blind,43.20,,,1.91,1019,,SERT\n")
        ...     read_published(path)[0].psnr
        43.2
    """
    file = _HERE if path is None else Path(path)
    if path is None and not file.is_file():
        raise FileNotFoundError(
            f"{file}: no published numbers beside the package; name the file published.csv yourself"
        )
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise ValueError(f"{file}: the column '{missing[0]}' is missing; needed are {', '.join(_COLUMNS)}")
            rows = tuple(_row(record, f"{file}, line {reader.line_num}") for record in reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file}: not a CSV file in UTF-8 ({error})") from error
    seen: dict[tuple[str, str, str], float] = {}
    for row in rows:
        if seen.setdefault((row.method, row.dataset, row.case), row.psnr) != row.psnr:
            raise ValueError(
                f"{file}: '{row.method}' has two PSNR for '{row.case}' on {row.dataset}; give it two names"
            )
    return rows


def published_lines(
    names: Sequence[str] | None = None,
    *,
    dataset: str = "ICVL",
    cases: Sequence[str] | None = None,
    path: str | Path | None = None,
) -> tuple[PublishedLine, ...]:
    """Published numbers as lines of a table.

    Args:
        names: Methods, in the order wanted; all of the data set, in the order of the file, if absent.
        dataset: Data set that the numbers are of.
        cases: Noise cases wanted; all if absent. A method without any of them is left out.
        path: As in :func:`read_published`.

    Returns:
        One line per method; a caveat stands in its label.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the file is not such a file, or a data set or method is not in it.

    Example:
        >>> if _HERE.is_file():
        ...     line = published_lines(["MAFNet"], cases=["mixture"])[0]
        ...     assert (line.label, line.scores) == ("MAFNet (own crop and metric)", {"mixture": 37.19})
    """
    rows = read_published(path)
    of_data = [row for row in rows if row.dataset == dataset]
    if not of_data:
        known = ", ".join(sorted({row.dataset for row in rows})) or "none"
        raise ValueError(f"no published numbers of the data set '{dataset}'; there are: {known}")
    methods = list(dict.fromkeys(row.method for row in of_data))
    lines = []
    for name in methods if names is None else names:
        if name not in methods:
            raise ValueError(f"no published numbers of '{name}' on {dataset}; there are: {', '.join(methods)}")
        chosen = [row for row in of_data if row.method == name and (cases is None or row.case in cases)]
        if chosen:
            lines.append(_line(name, chosen))
    return tuple(lines)


def _line(name: str, rows: Sequence[PublishedRow]) -> PublishedLine:
    caveats, sources = (list(dict.fromkeys(getattr(row, key) for row in rows)) for key in ("caveat", "source"))
    label = f"{name} ({'; '.join(filter(None, caveats))})" if any(caveats) else name
    millions = next((row.params_m for row in rows if row.params_m is not None), None)
    return PublishedLine(
        label,
        {row.case: row.psnr for row in rows},
        "; ".join(sources),
        parameters=None if millions is None else round(millions * 1e6),
        gflop=next((row.gflop for row in rows if row.gflop is not None), None),
    )


def _row(record: dict[str, str | None], where: str) -> PublishedRow:
    texts = {name: (record[name] or "").strip() for name in _COLUMNS}
    empty = next((name for name in _TEXTS if not texts[name]), None)
    if empty:
        raise ValueError(f"{where}: the column '{empty}' is empty; every number needs its {empty}")
    numbers = {name: _number(texts[name], f"{where}, {name}") for name in _NUMBERS}
    if numbers["psnr"] is None:
        raise ValueError(f"{where}: the column 'psnr' is empty; leave the row out instead")
    return PublishedRow(**(texts | numbers))  # type: ignore[arg-type]


def _number(text: str, where: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}: '{text}' is not a number")
    return value
