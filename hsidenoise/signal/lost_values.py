"""Values of a noisy cube that are no measurements: dead lines, stuck pixels, pixels without data.

Noise is continuous, so a value that turns up again and again in one band is not noise but a fault: a dead column or
row, a pixel at the end of the scale, salt and pepper. What is known to be lost can be left out, and the other bands and
pixels speak for it; what is only known to be unlikely has to be weighed.

References:
    Chan, Ho, Nikolova, "Salt-and-pepper noise removal by median-type noise detectors and detail-preserving
    regularization", IEEE TIP 2005. doi:10.1109/TIP.2005.852196 (detect first, then restore what was detected)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from hsidenoise.signal.noise_level import NORMAL_MEDIAN, noise_level, unexplained_by_others

FEWEST = 8
"""A line shorter than this, or a value rarer in its band, is not looked at."""

LEAST_SHARE = 0.01
"""Share of a band's pixels that a stuck value has at least; the noise cases have 0.05 (cave/validation)."""

OVER_NEIGHBOURS = 8.0
"""A stuck value is this many times as frequent as the values next to it are: whole numbers repeat by themselves."""

MOST_TOGETHER = 0.3
"""Stuck pixels are scattered: beyond chance, at most this share of their neighbours is stuck as well. A background
or a saturated glint lies together."""

FEWEST_VALUES = 64
"""A band with fewer different values than this says nothing of them: whole numbers of a small range."""

FAR_FROM_END = 4.0
"""Where the neighbours of a pixel are this many noise levels away from the end of the scale, none is cut off there."""

_MOST_STUCK = 4  # values of a band; more are whole numbers with others between: resampled, or divided by their noise
_MOST_BY_CHANCE = 2.0  # times as often as chance has it
_AS_OFTEN = 0.7  # share of stuck pixels far from the end of the scale, of that everywhere: noise that is cut off has 0
_DIRECTIONS = 8  # of the spectra, that missing bands are told by
_SPECTRA, _SPECTRA_PER_BAND = 1 << 13, 4  # that they are told from, at most and at least
_GUESSES = 6  # rounds in which those are completed, where too few are complete
_REACHES = (1, 2, 4, 8, 16)  # pixels, from which a lost value is filled: the nearest that suffices
_LEAST_WEIGHT = 0.08  # of what is known there
_REPEATED = 0.9  # as many different values as values, or fewer, of a band of whole numbers
_BEYOND = 0.0005  # share of values beyond the end of a scale that shows that it is none


def dead_lines(cube: Float[Tensor, "bands height width"], *, axis: int = 1) -> Bool[Tensor, "bands lines"]:
    """Lines in which a noisy band has one and the same value while most other bands have not.

    Args:
        cube: Noisy cube.
        axis: Axis that a line runs along: 1 for columns, 2 for rows.

    Returns:
        True for dead lines; all False where lines are shorter than 8 pixels.

    Example:
        >>> cube = torch.rand(3, 10, 6)
        >>> cube[1, :, 2] = 0
        >>> dead_lines(cube).nonzero().tolist()
        [[1, 2]]
    """
    constant = cube.amin(dim=axis) == cube.amax(dim=axis)
    if cube.shape[axis] < FEWEST:
        return torch.zeros_like(constant)
    if len(cube) > 2:
        # constant in most bands is no defect of a band: a frame without data, a flat background
        constant &= constant.float().mean(dim=0) < 0.5
    # in a band without noise many lines may well be constant
    return constant & (constant.float().mean(dim=1, keepdim=True) < 0.5)


def stuck_pixels(
    cube: Float[Tensor, "bands height width"], known: Bool[Tensor, "bands height width"] | None = None
) -> Bool[Tensor, "bands height width"]:
    """Pixels at a value that many scattered pixels of their band share.

    Args:
        cube: Noisy cube, of whole or real numbers.
        known: What is known to be lost, and not looked at.

    Returns:
        True for stuck pixels. Where noise was clipped, the values at the end of the scale are left alone.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> cube = torch.rand(2, 40, 50, generator=generator)
        >>> hit = torch.rand(40, 50, generator=generator) < 0.2
        >>> cube[1, hit] = 0.7
        >>> bool((stuck_pixels(cube)[1] == hit).all()), bool(stuck_pixels(cube)[0].any())
        (True, False)
    """
    stuck = torch.zeros_like(cube, dtype=torch.bool)
    for band, image in enumerate(cube if known is None else torch.where(known, torch.nan, cube)):
        frequent = [(value, image == value) for value in _frequent(image[~image.isnan()])]
        if not frequent:
            continue
        rest = ~image.isnan() & ~torch.stack([at for _, at in frequent]).any(0)
        for value, at in frequent:
            if together(at).min() < MOST_TOGETHER and not _clipped(image, value, at, rest):
                stuck[band] |= at
    most = stuck.float().mean(0) >= 0.5
    # stuck in most bands is no defect of a band, unless by chance: a background, a scene of few values without noise
    chance = chance_of_most(stuck.float().mean((1, 2)).tolist(), (len(cube) + 1) // 2)
    by_chance = most.float().mean() < _MOST_BY_CHANCE * chance
    return stuck if len(cube) < 3 or by_chance else stuck & ~most


def chance_of_most(shares: list[float], most: int) -> float:
    """How often so many bands or more are hit at once, each on such a share of its pixels.

    Example:
        >>> round(chance_of_most([0.1, 0.1], 1), 9), round(chance_of_most([0.1, 0.1], 2), 9)
        (0.19, 0.01)
    """
    chances = np.ones(1)  # of so many bands
    for share in shares:
        chances = np.convolve(chances, [1.0 - share, share])
    return float(chances[most:].sum())


def no_measurements(cube: Float[Tensor, "bands height width"]) -> Bool[Tensor, "bands height width"]:
    """Values of dead lines of either direction and of stuck pixels.

    Args:
        cube: Noisy cube.

    Returns:
        True for them.

    Example:
        >>> cube = torch.rand(3, 10, 16, generator=torch.Generator().manual_seed(0))
        >>> cube[1, :, 2] = 0
        >>> no_measurements(cube).sum((1, 2)).tolist()
        [0, 10, 0]
    """
    dead = (dead_lines(cube)[:, None, :] | dead_lines(cube, axis=2)[:, :, None]).expand_as(cube)
    return dead | stuck_pixels(cube, dead)


def _frequent(values: Tensor) -> list[float]:
    """Values that are far more frequent than those next to them."""
    ordered = np.sort(values.cpu().numpy())
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    if len(first) < FEWEST_VALUES:
        return []
    count = np.diff(np.append(first, len(ordered)))
    padded = np.pad(count, 2)
    usual = np.max([padded[:-4], padded[1:-3], padded[3:-1], padded[4:]], axis=0)
    least = np.maximum(OVER_NEIGHBOURS * usual, max(FEWEST, LEAST_SHARE * len(ordered)))
    often = count >= least
    if often.sum() > _MOST_STUCK:
        often &= count >= OVER_NEIGHBOURS * np.median(count[often])
    return [float(ordered[at]) for at in first[often]]


def _clipped(image: Tensor, value: float, at: Tensor, rest: Tensor) -> bool:
    """Whether a value may be where noise was cut off: an end of the scale, and rare where the scene is far from it."""
    others = image[rest]
    if min((others < value).float().mean(), (others > value).float().mean()) > _BEYOND:
        return False
    kernel = torch.ones(1, 1, 3, 3, dtype=image.dtype, device=image.device)
    kernel[..., 1, 1] = 0.0
    each = (torch.where(rest, image, 0.0), rest.to(image.dtype))
    total, count = (F.conv2d(x[None, None], kernel, padding=1)[0, 0] for x in each)
    pairs = rest[:, 1:] & rest[:, :-1]
    if not pairs.any():
        return True
    noise = (image[:, 1:] - image[:, :-1])[pairs].abs().median() / (NORMAL_MEDIAN * 2.0**0.5)
    far = (count > 0) & ((total / count.clamp_min(1.0) - value).abs() > FAR_FROM_END * noise)
    if far.float().mean() < LEAST_SHARE:
        return True
    return bool(at[far].float().mean() < _AS_OFTEN * at.float().mean())


def together(at: Bool[Tensor, "height width"]) -> Float[Tensor, " directions"]:
    """How close together some pixels of an image lie: 0 if scattered by chance, 1 if in long lines or large areas.

    Args:
        at: True for these pixels.

    Returns:
        Share of their neighbours that are of them too, beyond chance: in the same row, and in the same column.

    Example:
        >>> image = torch.arange(600).reshape(20, 30)
        >>> bool((together(image % 7 == 0) < 0.01).all()), bool((together(image < 200) > 0.7).all())
        (True, True)
    """
    share = at.float().mean()
    across = (at[:, 1:] & at[:, :-1]).float().mean() / at[:, 1:].float().mean().clamp_min(1e-9)
    along = (at[1:] & at[:-1]).float().mean() / at[1:].float().mean().clamp_min(1e-9)
    return (torch.stack([across, along]) - share) / (1.0 - share).clamp_min(1e-9)


def fill_invalid(
    cube: Shaped[Tensor, "bands height width"], mask: Bool[Tensor, "height width"]
) -> Shaped[Tensor, "bands height width"]:
    """Continue a cube over its invalid pixels by the mirror image of the valid ones of their column.

    Whole spectra are copied, with their noise: statistics of the result are those of valid pixels.

    Args:
        cube: Cube with anything, also NaN, in its invalid pixels.
        mask: True where a pixel is valid, at least once.

    Example:
        >>> cube = torch.arange(8.0).reshape(1, 4, 2)
        >>> fill_invalid(cube, cube[0] > 1).flatten().tolist()
        [2.0, 3.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    """
    return cube.flatten(1)[:, _sources(mask)]


def _sources(mask: Tensor) -> Tensor:
    """For each pixel the place, row after row, of the valid one that it takes."""
    columns = _nearest_mirrored(mask.any(0)[None])[0]
    rows = _nearest_mirrored(mask.T.contiguous())[columns].T
    return rows * mask.shape[1] + columns


def fill_gaps(
    cube: Float[np.ndarray, "bands height width"], valid: Bool[np.ndarray, "bands height width"]
) -> Float[np.ndarray, "bands height width"]:
    """Continue a cube over its invalid values, in a way that any denoiser takes for more of the same scene.

    Where a pixel has valid values in some bands, the others are what these say by the principal directions of all
    spectra, with noise as the band has it. Pixels without any are the mean of what is near them, with such noise: the
    copy of a noisy pixel would be taken for scene. Three pixels from a slanted border the error is 1.1 times that
    without a border, with copies 1.5 times (remote_sensing_clean, gaussian-30). Dead lines and stuck pixels go on.
    Whole numbers are continued by whole numbers: beside other values, each would stand out as one that repeats.

    Args:
        cube: Cube with anything in its invalid values, such as NaN.
        valid: True where a value holds data; some do in each band.

    Returns:
        A copy; valid values are as they were.

    Example:
        >>> cube = np.arange(1.0, 5.0)[:, None, None] * np.random.default_rng(0).random((20, 30))
        >>> valid = np.ones(cube.shape, dtype=bool)
        >>> valid[2, :10], valid[:, 15, :5] = False, False
        >>> filled = fill_gaps(np.where(valid, cube, np.nan), valid)
        >>> bool(np.abs(filled - cube)[:, :10].max() < 1e-3), bool(np.isfinite(filled).all())
        (True, True)

    References:
        Tipping and Bishop, "Probabilistic principal component analysis", JRSS B 1999. doi:10.1111/1467-9868.00196
    """
    filled = np.ascontiguousarray(cube).copy()
    known = np.asarray(valid.any(axis=0))
    partly = known & ~valid.all(axis=0)
    if partly.any():
        _complete(filled.reshape(len(cube), -1), valid.reshape(len(cube), -1), known.ravel(), partly.ravel())
        _repeat(filled, valid, known)
    if known.all():
        return filled
    filled = _continued(filled, known)
    _repeat(filled, np.broadcast_to(known, cube.shape), ~known)
    return filled


def _repeat(cube: np.ndarray, valid: np.ndarray, pixels: np.ndarray) -> None:
    """Draw what is filled, among some pixels, to values that its band has, if these repeat; in place.

    Where values were cut off, what is filled is cut off as well.
    """
    for image, there in zip(cube, valid, strict=True):
        gaps = pixels & ~there
        own, counts = np.unique(image[there], return_counts=True)
        if not gaps.any() or len(own) < 2:
            continue
        low, high = own[0] if counts[0] > counts[1] else -np.inf, own[-1] if counts[-1] > counts[-2] else np.inf
        filled = image[gaps].astype(np.float64).clip(low, high)
        if len(own) <= _REPEATED * there.sum():
            near = own[np.searchsorted((own[1:] + own[:-1]) / 2.0, filled)].astype(np.float64)
            step = float(np.median(np.diff(own)))
            beyond = (filled < own[0]) | (filled > own[-1])
            filled = near + np.where(beyond, np.rint((filled - near) / step) * step, 0.0)
        image[gaps] = filled


def _continued(cube: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Fill the pixels that miss all of their bands."""
    filled = fill_invalid(torch.from_numpy(cube), torch.from_numpy(known)).numpy()
    if min(known.shape) < 2:
        return filled
    spectra = cube[:, known]
    unexplained = unexplained_by_others(spectra[:, None])
    lost = no_measurements(torch.from_numpy(filled)).numpy()
    rng = np.random.default_rng(0)
    for band, image in enumerate(filled):
        there = known & ~lost[band]
        sigma = np.fmin(noise_level(image[None], there)[0], unexplained[band])
        if not np.isfinite(sigma):
            continue  # too few pixels to say
        middle = image[there].mean(dtype=np.float64)
        near = _fill_image(torch.from_numpy(image - middle), torch.from_numpy(~there)).numpy() + middle
        here = ~known & ~lost[band]
        image[here] = (near + rng.normal(0.0, sigma, known.shape))[here]
    return filled


def _complete(cube: np.ndarray, valid: np.ndarray, known: np.ndarray, partly: np.ndarray) -> None:
    """Fill the pixels that miss some of their bands, in place."""
    bands = len(cube)
    rng = np.random.default_rng(0)
    whole = np.flatnonzero(known & ~partly)
    rounds = 1
    if len(whole) < _SPECTRA_PER_BAND * bands:
        whole, rounds = np.flatnonzero(known), _GUESSES
    if len(whole) > _SPECTRA:
        whole = np.sort(rng.choice(whole, _SPECTRA, replace=False))
    there = valid[:, whole]
    sample = np.where(there, cube[:, whole], 0.0).astype(np.float64)
    level = sample.sum(1, keepdims=True) / np.maximum(there.sum(1, keepdims=True), 1)
    spread = np.where(there, sample - level, 0.0).std(1, keepdims=True)
    spread[spread == 0] = 1.0
    sample = np.where(there, (sample - level) / spread, 0.0)
    guess, mean = sample, np.zeros((bands, 1))
    for _ in range(rounds):
        mean = guess.mean(1, keepdims=True)
        around = guess - mean
        energy, directions = np.linalg.eigh(around @ around.T / around.shape[1])
        count = min(_DIRECTIONS, bands - 1)
        rest = max(float(energy[: bands - count].mean()), 1e-9)
        loads = directions[:, bands - count :] * np.sqrt(np.maximum(energy[bands - count :] - rest, 0.0))
        noise = np.maximum(np.square(around).mean(1) - np.square(loads).sum(1), 1e-6)
        said = mean + _said_by_others(np.where(there, sample - mean, 0.0), there, loads, noise)
        guess = np.where(there, sample, said)
    left = [(sample - said)[band, there[band]] for band in range(bands)]
    places = np.flatnonzero(partly)
    for first in range(0, len(places), _SPECTRA):
        some = places[first : first + _SPECTRA]
        there = valid[:, some]
        inside = np.where(there, (np.where(there, cube[:, some], 0.0) - level) / spread - mean, 0.0)
        values = mean + _said_by_others(inside, there, loads, noise)
        for band in np.flatnonzero(~there.all(axis=1)).tolist():
            gaps = ~there[band]
            drawn = rng.choice(left[band], int(gaps.sum())) if left[band].size else 0.0
            cube[band, some[gaps]] = level[band] + spread[band] * (values[band, gaps] + drawn)


def _said_by_others(spectra: np.ndarray, there: np.ndarray, loads: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """What the known bands of each spectrum say of all of them, (bands, spectra)."""
    count = loads.shape[1]
    weighted = loads / noise[:, None]
    products = (weighted[:, :, None] * loads[:, None, :]).reshape(len(loads), -1)
    system = (there.T.astype(np.float64) @ products).reshape(-1, count, count) + np.eye(count)
    found: np.ndarray = loads @ np.linalg.solve(system, (spectra.T @ weighted)[..., None])[..., 0].T
    return found


_listening: ContextVar[list[Tensor] | None] = ContextVar("listening", default=None)


@contextmanager
def replaced_values() -> Iterator[list[Bool[Tensor, "bands height width"]]]:
    """Collect which values are replaced in the cubes that are denoised inside, by whatever network or method.

    Example:
        >>> with replaced_values() as replaced:
        ...     tell_replaced(torch.zeros(3, 4, 5, dtype=torch.bool))
        >>> [each.shape for each in replaced]
        [torch.Size([3, 4, 5])]
    """
    found: list[Tensor] = []
    token = _listening.set(found)
    try:
        yield found
    finally:
        _listening.reset(token)


def tell_replaced(replaced: Bool[Tensor, "bands height width"]) -> None:
    """Add the replaced values of a cube to what :func:`replaced_values` collects, if it does."""
    if (found := _listening.get()) is not None:
        found.append(replaced)


def _nearest_mirrored(valid: Tensor) -> Tensor:
    """For each place of a line a valid one: itself, or one as far inside of the nearest border as it is outside."""
    length = valid.shape[1]
    place = torch.arange(length, device=valid.device)
    number = valid.cumsum(1) - 1  # of the last valid place up to here
    count = valid.sum(1, keepdim=True).clamp_min(1)
    order = valid.float().argsort(dim=1, descending=True, stable=True)  # the valid places, in order
    before = torch.where(valid, place, -1).cummax(1).values
    after = torch.where(valid, place, 2 * length).flip(1).cummin(1).values.flip(1)
    left = torch.where(before < 0, 4 * length, place - before)
    right = torch.where(after >= length, 4 * length, after - place)
    inside = torch.where(left <= right, number - (left - 1), number + 1 + (right - 1))
    inside = torch.where(valid, number, inside) % (2 * count)
    inside = torch.where(inside < count, inside, 2 * count - 1 - inside)
    return order.gather(1, inside)


def fill(
    cube: Float[Tensor, "bands height width"], lost: Bool[Tensor, "bands height width"]
) -> Float[Tensor, "bands height width"]:
    """Replace lost values by the mean of what is near them in their band, the nearer the more.

    Args:
        cube: Noisy cube.
        lost: What to replace. A band that is lost as a whole keeps its values.

    Example:
        >>> cube = torch.ones(1, 9, 9)
        >>> cube[0, 4, 4] = 100
        >>> fill(cube, cube > 50)[0, 4, 4].item()
        1.0
    """
    filled = cube.clone()
    for band in torch.nonzero(lost.flatten(1).any(1) & ~lost.flatten(1).all(1)).flatten().tolist():
        filled[band] = _fill_image(cube[band], lost[band])
    return filled


def _fill_image(image: Tensor, lost: Tensor) -> Tensor:
    filled, missing = image.clone(), lost.clone()
    known = torch.stack([torch.where(lost, 0.0, image), (~lost).to(image.dtype)])
    for reach in _REACHES:
        value, weight = _blurred(known, reach)
        near = missing & (weight > _LEAST_WEIGHT)
        filled[near] = (value / weight)[near]
        missing &= ~near
        if not missing.any():
            return filled
    filled[missing] = image[~lost].mean()
    return filled


def _blurred(images: Tensor, reach: int) -> Tensor:
    """Gaussian blur of this standard deviation; zeros outside."""
    offset = torch.arange(-2 * reach, 2 * reach + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-((offset / reach) ** 2) / 2.0)
    kernel /= kernel.sum()
    down = F.conv2d(images[:, None], kernel[None, None, :, None], padding=(2 * reach, 0))
    return F.conv2d(down, kernel[None, None, None, :], padding=(0, 2 * reach))[:, 0]
