"""Facts of a cube: what it looks like, what was taken away from it, and what it is called."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from hsidenoise.data.io import Cube
from hsidenoise.data.layout import printable
from hsidenoise.signal.bad_bands import bad_bands
from hsidenoise.signal.lost_values import fill_gaps
from hsidenoise.signal.mask import named_bands
from hsidenoise.signal.noise_level import spread_of_most
from hsidenoise.signal.survey import Survey, alike, residual_check, survey

_BEYOND = 1e15  # whose square, summed over a cube, single precision holds, as that of its inverse
_FEWEST = 4  # pixels with data that the noise is estimated from
_FEW = 200  # values of a band from which its noise level is known to a twentieth, 1 / sqrt(2 n)
_UNTOLD = 0.5  # of the noise before: where more seems left, it is the scene's own detail
# share of values that are filled from which the noise level is a tenth too low (31 and 20 bands, noise 0.05 of 1)
_MANY_GAPS = 0.25


def describe(cube: Cube) -> dict[str, Any]:
    """What a cube looks like: sizes, axes, range, noise, defects, bands that stand out.

    Returns:
        What `hsidenoise inspect --json` prints: ``variable``, ``bands``, ``height``, ``width``, ``axes``, ``reason``,
        ``range`` (of what holds data), ``not_data``, ``wavelengths`` (first and last, nm), ``noise`` (of
        :func:`hsidenoise.signal.survey.survey`: lists with a number for each band, None for one without data;
        ``ranked`` are the others from the noisiest on by the signal-to-noise ratio; None below 2 x 2 pixels and where
        every band is constant), ``bad_bands``. Bands that hold data in the same pixels are looked at together; gaps of
        others are filled first.

    Warns:
        UserWarning: If so little holds data that the noise level is rough.

    Raises:
        ValueError: If nothing holds data.

    Example:
        >>> describe(Cube(np.random.default_rng(0).random((3, 20, 30), dtype=np.float32)))["height"]
        20
    """
    bands, height, width = cube.values.shape
    valid = _valid(cube)
    if not valid.any():
        raise ValueError("no value holds data")
    low, high = (
        float(cube.values.min(where=valid, initial=np.inf)),
        float(cube.values.max(where=valid, initial=-np.inf)),
    )
    waves = None if cube.wavelengths is None else cube.wavelengths[np.isfinite(cube.wavelengths)]
    values, alive, pixels = _filled(cube.values, valid)
    noise, bad = None, []
    if min(height, width) > 1 and low < high and pixels.sum() >= _FEWEST:
        mask = None if pixels.all() else pixels
        there = valid[alive]
        partly = not there[:, pixels].all()
        found = survey(cube.values[alive] if partly else values, there if partly else mask)
        noise = _noise_of(found, alive, bands, high - low)
        is_bad = bad_bands(values, mask)
        together = alike(there) if partly else []
        for group in together:
            is_bad[group] = bad_bands(cube.values[alive[group]], there[group[0]])
        bad = alive[is_bad].tolist()
        alone = np.setdiff1d(np.arange(len(alive)), np.concatenate([np.zeros(0, int), *together]))
        gaps = 1 - float(there[alone][:, pixels].mean()) if alone.size else 0.0
        if gaps > _MANY_GAPS:
            warnings.warn(
                f"{gaps:.0%} of the values of {named_bands(alive[alone].tolist())} (0-based) are missing where other "
                "bands are not: noise and defects are rough",
                stacklevel=2,
            )
        if (fewest := int(valid[alive].sum(axis=(1, 2)).min())) < _FEW and noise is not None:
            warnings.warn(
                f"a band holds only {fewest} values with data: what is said of its noise is rough", stacklevel=2
            )
    return {
        "variable": variable_of(cube),
        "bands": bands,
        "height": height,
        "width": width,
        "axes": "" if cube.layout is None else cube.layout.axes,
        "reason": "" if cube.layout is None else cube.layout.reason,
        "range": [low, high],
        "not_data": list(cube.not_data),
        "wavelengths": None if waves is None or not len(waves) else [float(waves[0]), float(waves[-1])],
        "noise": noise,
        "bad_bands": bad,
    }


def residual_of(noisy: Cube, denoised: Cube, strength: float = 1.0) -> dict[str, Any]:
    """What was taken away from a cube, band by band, see :func:`hsidenoise.signal.survey.residual_check`.

    A band without data has None in each list. The noise after is that from pixel to pixel, None where it is not told
    from the scene's own detail.

    Args:
        noisy: Noisy cube.
        denoised: Denoised cube.
        strength: Share, 0 to 1, of the noise found that was taken away.

    Warns:
        UserWarning: If the residual of some bands has a structure that noise has not.

    Example:
        >>> cube = Cube(np.random.default_rng(0).random((3, 20, 30), dtype=np.float32))
        >>> residual_of(cube, Cube(cube.values * 0.5))["structured"]
        []
    """
    valid = _valid(noisy)
    values, bands, mask = _filled(noisy.values, valid)
    if min(mask.shape) < 2 or not mask.any():
        return {}
    largest = float(np.abs(values[:, mask]).max())
    unit = 1.0 if 1 / _BEYOND < largest < _BEYOND else largest or 1.0
    before, after = (_usable(cube, unit) for cube in (values, _filled(denoised.values, valid)[0]))
    left = np.where(mask, before.astype(np.float64) - after, 0.0)
    sigma = spread_of_most(left[:, mask][:, None]) / strength if strength > 0 else None
    found = residual_check(before, after, None if mask.all() else mask, sigma)
    structured = tuple(bands[found.structured].tolist())

    def each(values: np.ndarray, unit: float = 1.0) -> list[float | None]:
        whole = np.full(len(noisy.values), np.nan)
        whole[bands] = values * unit
        return _numbers(whole)

    if structured:
        warnings.warn(structured_note(structured), stacklevel=2)
    told = float(np.median(found.after)) <= _UNTOLD * float(np.median(found.before))
    return {
        "noise_before": {"median": float(np.median(found.before)) * unit, "per_band": each(found.before, unit)},
        "noise_after": {
            "median": float(np.median(found.after)) * unit if told else None,
            "per_band": each(np.where(found.after > _UNTOLD * found.before, np.nan, found.after), unit),
        },
        "removed": each(found.removed, unit),
        "whiteness": each(found.whiteness),
        "whiteness_most": float(max(found.whiteness, key=abs)),
        "eaten": each(found.eaten),
        "eaten_most": float(max(found.eaten, key=abs)),
        "structure": each(found.structure),
        "structured": list(structured),
        "contrast": found.contrast,
    }


def structured_note(bands: Sequence[int]) -> str:
    """What is said of bands whose residual has a structure.

    Example:
        >>> structured_note([3])[:34]
        'what was taken away from band 3 (0'
    """
    return (
        f"what was taken away from {named_bands(bands)} (0-based) has a structure: it may be signal; look at the "
        "residual, or take a smaller --strength"
    )


def _usable(values: np.ndarray, unit: float) -> np.ndarray:
    """A cube, finite and in a unit that single precision can hold."""
    values = values if np.isfinite(values).all() else np.where(np.isfinite(values), values, 0)
    return values if unit == 1.0 else values / unit


def _noise_of(found: Survey, alive: np.ndarray, bands: int, span: float) -> dict[str, Any] | None:
    """A survey of some of the bands of a cube, for JSON; None where it says nothing of any."""
    if not np.isfinite(found.sigma).any():
        return None
    median, worst = float(np.nanmedian(found.sigma)), int(np.nanargmax(found.sigma))

    def each(values: list[Any]) -> list[Any]:
        known = dict(zip(alive.tolist(), values, strict=True))
        return [known.get(band) for band in range(bands)]

    return {
        "per_band": each(_numbers(found.sigma)),
        "median": median,
        "median_share": median / span,
        "worst": float(found.sigma[worst]),
        "worst_band": int(alive[worst]),
        "snr_db": each(_numbers(found.snr)),
        "ranked": alive[np.argsort(np.nan_to_num(found.snr, nan=-np.inf), kind="stable")].tolist(),
        "impulses": each(_numbers(found.impulses)),
        "dead_columns": each(found.dead_columns.tolist()),
        "dead_rows": each(found.dead_rows.tolist()),
        "stripes_columns": each(found.stripes_columns.tolist()),
        "stripes_rows": each(found.stripes_rows.tolist()),
        "size": list(found.size),
    }


def _valid(cube: Cube) -> np.ndarray:
    return np.isfinite(cube.values) if cube.mask is None else cube.mask


def _filled(cube: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bands that hold data, without gaps in the pixels where any of them does; which bands, and which pixels."""
    bands = np.flatnonzero(valid.any(axis=(1, 2)))
    values = cube if len(bands) == len(valid) else cube[bands]
    pixels = np.asarray(valid.any(axis=0))
    known = valid[bands][:, None, pixels]
    if not known.all():
        values = values.copy()
        values[:, pixels] = fill_gaps(values[:, None, pixels], known)[:, 0]
    return values, bands, pixels


def _numbers(values: np.ndarray) -> list[float | None]:
    """For JSON, which has no word for what is not a number."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]


def variable_of(cube: Cube) -> str:
    """Name of the variable that a cube was read from, fit to print.

    Example:
        >>> variable_of(Cube(np.zeros((1, 2, 3), dtype=np.float32)))
        'cube'
    """
    return "cube" if cube.layout is None else printable(cube.layout.key)


def sizes_of(cube: Cube) -> str:
    """Sizes of a cube in words.

    Example:
        >>> sizes_of(Cube(np.zeros((1, 2, 3), dtype=np.float32)))
        '1 bands of 2 x 3'
    """
    bands, height, width = cube.values.shape
    return f"{bands} bands of {height} x {width}"
