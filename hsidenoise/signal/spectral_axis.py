"""Which axis of an array of three is the spectrum, by what the values say.

Slices along the spectrum are bands, and bands have in common what rows or columns have not:

- a few directions explain nearly all that differs between them;
- neighbours differ by what is the same all over them, their mean, more than by structure;
- each has a noise of its own;
- they show one image, beside what rows, columns and bands have in the mean;
- they are fewer, as a rule, than rows or columns.

Each of these is a number for each axis, and the product is high for one of the three. The first three have the weight 1
and the others 1/2: a logistic regression gives 0.95, 0.8, 1.1, 0.6 and 0.5 (CAVE's training and validation scenes,
Indian Pines, MUUFL, pavia_crop, a satellite cube and eight scenes from the air, whole and in parts, and cubes made by
code, all of them with and without noise).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from hsidenoise.signal.mask import find_extremes

CLEAR = 3.0
"""Lead of the best axis over the second, from which the values decide.

On 47 cubes in all six orders of their axes (those above, and CAVE's test scenes, Samson, Jasper Ridge and ten more from
the air), of 282 whole cubes six are taken wrongly, one scene in its six orders, and of 3,384 crops of 20 to 60 pixels a
side 110: all of them with a lead below this."""

_FEW = 1000  # values that say nothing of axes
_HINT = 0.3  # lead of an axis by its values from which a guess follows it
_SIDE = 48  # slices that are looked at along each axis
_PATCH = 64  # pixels of a slice down and across that its noise is read off
_RANK = 4  # directions that explain what differs between bands
_NOISE = 1.2  # times the energy of noise, that one direction may have of it
_HOT = 0.002  # share of the values at each end that are drawn in
_CHANCE = 4.0  # standard errors of a correlation between neighbours, that noise alone does not have
_FLOOR = 1e-6  # of the variance: keeps logarithms finite


def axis_scores(array: Any) -> Float64[np.ndarray, " 3"]:
    """How much each axis of an array looks like the spectrum.

    Args:
        array: Of three axes, each longer than one, and real numbers: a NumPy array or what can be sliced like one.
            About 48 values along each axis are looked at; what is not finite or no measurement
            (:func:`hsidenoise.signal.mask.find_extremes`) counts for nothing.

    Returns:
        A score for each axis, logarithmic; all the same where nothing can be said. From a lead of :data:`CLEAR` over
        the others the best one is sure.

    Example:
        >>> bands, rows = np.arange(20)[:, None, None], np.arange(30)[:, None]
        >>> materials = np.random.default_rng(0).random((2, 30, 40)) > 0.5
        >>> cube = materials[0] * np.sin(bands / 7) + materials[1] * np.cos(bands / 9)
        >>> int(axis_scores(cube).argmax()), int(axis_scores(cube.transpose(1, 2, 0)).argmax())
        (0, 2)
    """
    from hsidenoise.signal.noise_level import haar_details  # with torch: see scaling

    steps = [-(-size // _SIDE) for size in array.shape]
    every = tuple(slice(None, None, step) for step in steps)
    sample = np.asarray(array[every], dtype=np.float64)
    if not np.isfinite(sample).any():
        return np.zeros(3)
    extremes = find_extremes(sample)
    known = (sample >= extremes.low) & (sample <= extremes.high) & np.isfinite(sample)
    inside = _Inside(array, np.where(known, sample, np.nan), steps)  # an edge without data is no band
    if inside.shape != array.shape:
        return axis_scores(inside) if min(inside.shape) > 1 else np.zeros(3)
    finite = sample[known]
    middle, low, high = np.quantile(finite, (0.5, _HOT, 1 - _HOT))
    if not high > low:
        return np.zeros(3)

    def tame(values: Any) -> np.ndarray:
        known = np.asarray(values, np.float64)
        known = np.where((known >= extremes.low) & (known <= extremes.high), known, middle)
        return np.asarray((known.clip(low, high) - middle) / (high - low))

    sample = tame(sample)
    sample -= sample.mean()
    variance = float(np.square(sample).mean())
    if not variance > 0:
        return np.zeros(3)
    alike = [1.0 - np.square(np.diff(sample, axis=axis)).mean() / (2.0 * variance) for axis in range(3)]
    if max(alike) * sample.size**0.5 < _CHANCE:  # noise without anything in it
        return np.zeros(3)
    floor = _FLOOR * variance
    others = [tuple(axis for axis in range(3) if axis != which) for which in range(3)]
    alone = sample - sum(sample.mean(axis=rest, keepdims=True) for rest in others)
    energies = [_energies(np.moveaxis(sample, axis, 0)) for axis in range(3)]
    noise = min(float(np.median(energy)) * len(energy) for energy in energies)
    rank = max(0, min(_RANK, min(sample.shape) - 2))
    scores = np.empty(3)
    for axis, energy in enumerate(energies):
        image = np.square(alone.mean(axis=axis)).mean() / variance
        known = (energy - _NOISE * noise / len(energy)).clip(0)
        left = known[rank:].sum() / (known.sum() + 1e-9 * energy.sum() + np.finfo(float).tiny)
        first, second, patch = list(every), list(every), [slice(_PATCH)] * 3
        first[axis], second[axis] = slice(0, array.shape[axis] - 1, steps[axis]), slice(1, None, steps[axis])
        patch[axis] = every[axis]
        near = tame(array[tuple(second)]) - tame(array[tuple(first)])
        by_mean = [
            (np.square(step.mean(axis=others[axis])).mean() + floor) / (np.square(step).mean() + floor)
            for step in (near, np.diff(sample, axis=axis))
        ]
        level = np.median(np.abs(haar_details(np.moveaxis(tame(array[tuple(patch)]), axis, 0))), axis=(1, 2))
        scores[axis] = (
            0.5 * math.log(image + _FLOOR)
            - math.log(left + 0.003)
            + 0.5 * math.log(by_mean[0] * by_mean[1])
            + math.log(np.std(np.log(level + 0.01 * variance**0.5)) + 0.02)
            - 0.5 * math.log(array.shape[axis])
        )
    return scores


def find_spectrum(sizes: Sequence[int], arrays: Iterable[np.ndarray], *, lines: bool) -> tuple[int, str, bool]:
    """Which axis is the spectrum, by values and sizes.

    Args:
        sizes: Of three axes.
        arrays: One array, or several of these sizes and with the same meaning: where the first is not clear, the next
            speaks too.
        lines: Whether an axis of one is an image of one line, else one band.

    Returns:
        Index of the axis, why, and whether it is a guess.

    Example:
        >>> find_spectrum((512, 512, 31), [np.zeros((512, 512, 31))], lines=False)
        (2, 'the other two are equal', False)
    """
    index, because, sure = _by_sizes(sizes, lines=lines)
    scores, few = np.zeros(3), min(sizes) < 2 or math.prod(sizes) < _FEW
    for array in arrays:
        if not array.min() < array.max():  # refused later
            return index, because, False
        if few:
            return index, because, not sure
        scores = scores + axis_scores(array)
        if lead(scores) >= CLEAR:
            return int(scores.argmax()), "by its values", False
    best, ahead = int(scores.argmax()), lead(scores)
    if sure:
        return index, because, best != index and ahead > 0
    return (best, "its values hint at it", True) if ahead >= _HINT else (index, because, True)


def lead(scores: Float64[np.ndarray, " 3"]) -> float:
    """By how much the best of some scores is ahead of the second."""
    return float(np.diff(np.sort(scores))[-1])


def _by_sizes(sizes: Sequence[int], *, lines: bool) -> tuple[int, str, bool]:
    """Index of the spectrum, why, and whether that is usual enough to go by.

    An axis of one is a band unless images of one line are expected.
    """
    order = sorted(range(3), key=lambda axis: sizes[axis])
    shortest = order[0]
    if sizes[2] == 1:
        return 2, "the last and shortest", True
    for index, (one, other) in {2: (0, 1), 0: (1, 2), 1: (0, 2)}.items():
        if sizes[one] == sizes[other] != sizes[index]:
            return index, "the other two are equal", True
    if lines and sizes[shortest] == 1:  # `cube(:, 7, :)` of MATLAB keeps its three axes
        return 2, "the last, as is usual, of an image of one line", False
    if 2 * sizes[shortest] < sizes[order[1]]:
        sure = 4 * sizes[shortest] < sizes[order[1]]
        return shortest, f"less than {'a quarter' if sure else 'half'} as long as the other two", sure
    if sizes[2] == min(sizes) < max(sizes):
        return 2, "the last and shortest", False
    return 2, "the last, as is usual", False


class _Inside:
    """What is left of an array without the edges that hold no data, or one value only."""

    def __init__(self, array: Any, sample: np.ndarray, steps: Sequence[int]) -> None:
        self.array, self.first, shape = array, [], []
        known = np.isfinite(sample)
        for axis, (size, step) in enumerate(zip(array.shape, steps, strict=True)):
            others = tuple(other for other in range(3) if other != axis)
            share = known.mean(axis=others)
            varied = np.where(known, sample, -np.inf).max(others) > np.where(known, sample, np.inf).min(others)
            held = np.flatnonzero((share > 0.5 * share.max()) & (varied | ~varied.any()))
            whole = not held.size or (held[0] == 0 and held[-1] == len(share) - 1)
            self.first.append(0 if whole else int(held[0]) * step)
            shape.append(size if whole else min(size, (int(held[-1]) + 1) * step) - self.first[-1])
        self.shape = tuple(shape)

    def __getitem__(self, part: tuple[slice, ...]) -> Any:
        moved = []
        for one, first, size in zip(part, self.first, self.shape, strict=True):
            start, stop, step = one.indices(size)
            moved.append(slice(first + start, first + stop, step))
        return self.array[tuple(moved)]


def _energies(slices: np.ndarray) -> np.ndarray:
    """Energy of what differs between slices, by direction, the largest first."""
    flat = slices.reshape(len(slices), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    flat -= flat.mean(axis=0)
    return np.asarray(np.linalg.eigvalsh(flat @ flat.T)[::-1].clip(0))
