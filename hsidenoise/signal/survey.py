"""What a cube says of its own noise and defects, before anything is done to it and after.

:func:`survey` is a look at a noisy cube; :func:`residual_check` one at what a denoiser took away, for cubes of which
nobody has a clean version.

References:
    Manolakis, Marden and Shaw, "Hyperspectral Image Processing for Automatic Target Detection Applications", Lincoln
    Laboratory Journal 2003 (matched filter)
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Real
from torch.nn import functional

from hsidenoise.signal.defects import column_offsets, without_common
from hsidenoise.signal.lost_values import dead_lines, fill_gaps, no_measurements
from hsidenoise.signal.noise_level import haar_details, level_of_residual, noise_level, normal_quantile
from hsidenoise.signal.planes.estimate import denoise_by_planes

SIDE = 128
"""Side in pixels of the middle of a cube that the noise is read off: seconds for any cube."""

_FAR = 4.0  # noise levels from which a value is an impulse
_STRIPE = 0.5  # noise levels by which a line is off
# bands and pixels of a group of its own: half of a cube of 31 bands, a hundredth of a small one
_FEWEST_ALIKE, _FEWEST_PIXELS = 8, 400
# Parts of fewer bands by brightness, and how much more noise they have in the mean from which it grows. Noise like the
# root of the signal in superballs, 1 to 8 bands: 0.67 to 0.90 of what it is, 0.35 to 0.82 without.
_MANY_BANDS, _PARTS, _FEWEST_IN_PART, _FLAT, _LEAST_GROWTH, _FEWEST_REGRESSED = 31, 20, 150, 0.25, 1.03, 4
_CHANCE = 1e-4  # share of values that chance puts there, about
# ratio of two estimates, over its median, from which the finer one has followed the noise: with stripes, without
_UNLIKE = (1.04, 1.2)


@dataclass(frozen=True)
class Survey:
    """Noise and defects of a cube, band by band.

    Attributes:
        sigma: Level of the Gaussian noise, in the unit of the cube; NaN where nothing can be said.
        signal: Standard deviation of the scene, in the same unit.
        snr: Mean over noise level, dB (20 log10).
        impulses: Share of the values that are stuck, or off by more than four noise levels, 0 to 1.
        dead_columns: Columns of one value.
        dead_rows: Rows of one value.
        stripes_columns: Columns that are off as a whole, by half a noise level or more.
        stripes_rows: Rows that are.
        size: Height and width of the part in the middle that all but dead lines is read off.
    """

    sigma: Float64[np.ndarray, " bands"]
    signal: Float64[np.ndarray, " bands"]
    snr: Float64[np.ndarray, " bands"]
    impulses: Float64[np.ndarray, " bands"]
    dead_columns: Int[np.ndarray, " bands"]
    dead_rows: Int[np.ndarray, " bands"]
    stripes_columns: Int[np.ndarray, " bands"]
    stripes_rows: Int[np.ndarray, " bands"]
    size: tuple[int, int]


def survey(
    cube: Real[np.ndarray, "bands height width"], mask: Bool[np.ndarray, "*bands height width"] | None = None
) -> Survey:
    """Look at the noise and the defects of a cube.

    The noise level is that of :func:`hsidenoise.signal.planes.estimate.denoise_by_planes` on the middle of the cube.
    Bands that hold data in the same pixels are looked at together (:func:`alike`); what is filled says little of noise.

    Args:
        cube: Noisy cube in any unit, at least 2 x 2 pixels.
        mask: True where a pixel, or a value, holds data, somewhere in each band; None: everywhere.

    Returns:
        What was found.

    Raises:
        ValueError: If the cube is too small or a valid value is not finite.

    Example:
        >>> clean = np.linspace(1, 2, 6)[:, None, None] * np.random.default_rng(1).random((40, 50)).cumsum(1)
        >>> found = survey(clean + np.random.default_rng(0).normal(0, 0.3, clean.shape))
        >>> found.sigma.round(1)
        array([0.3, 0.3, 0.3, 0.3, 0.3, 0.3])
    """
    if mask is not None and mask.ndim == 3:
        return _in_groups(cube, mask)
    height, width = cube.shape[1:]
    top, left = max(0, (height - SIDE) // 2), max(0, (width - SIDE) // 2)
    part = np.s_[top : top + SIDE, left : left + SIDE]
    if mask is not None and mask[part].mean() < 0.5:  # the part of most data
        rows, columns = (
            np.convolve(mask.mean(axis), np.ones(min(SIDE, mask.shape[1 - axis])), "valid") for axis in (1, 0)
        )
        top, left = int(rows.argmax()), int(columns.argmax())
        part = np.s_[top : top + SIDE, left : left + SIDE]
    known = np.ones((height, width), bool) if mask is None else mask
    here = known[part]
    exact = cube[:, part[0], part[1]].astype(np.float64)
    valid = exact[:, here]
    middle = np.median(valid, axis=1)
    unit = float(np.median(valid.std(axis=1))) or float(valid.std()) or 1.0
    small = torch.from_numpy(np.where(here, (exact - middle[:, None, None]) / unit, 0.0).astype(np.float32))
    masked = None if here.all() else torch.from_numpy(here)
    found = denoise_by_planes(small, masked)
    outside = torch.from_numpy(~here)
    residual = torch.where(found.lost | outside, 0.0, small - found.denoised)
    sigma = found.sigma.double().numpy()
    columns, rows = (_stripes(residual, axis, found.sigma) for axis in (1, 2))
    far = (residual.abs() > _FAR * found.sigma[:, None, None]) | found.lost
    share = far.numpy().sum((1, 2)) / here.sum()
    share = np.where(share > _CHANCE, share, 0.0)
    # stripes can look like scene to the planes, and cancel in the details
    details = _details(small.numpy(), (found.lost | outside).numpy())
    ratio = details / np.maximum(sigma, 1e-12)
    usual = max(1.0, float(np.median(ratio)))
    limit = np.where(columns + rows > 0, _UNLIKE[0], _UNLIKE[1])
    sigma = np.where(ratio > limit * usual, details / usual, sigma)
    if len(sigma) < _MANY_BANDS:
        sigma = _of_all_brightnesses(sigma, small, found.denoised, found.lost | outside)
    sigma = np.where(valid.max(axis=1) > valid.min(axis=1), sigma * unit, np.nan)
    scene = found.denoised.numpy()[:, here].std(axis=1).astype(np.float64) * unit
    with np.errstate(divide="ignore", invalid="ignore"):
        snr = 20.0 * np.log10(np.abs(valid.mean(axis=1)) / sigma)
    whole = torch.from_numpy(np.ascontiguousarray(np.where(known, cube, 0), dtype=np.float32))
    return Survey(
        sigma,
        scene,
        snr,
        share.astype(np.float64),
        dead_lines(whole).sum(1).numpy(),
        dead_lines(whole, axis=2).sum(1).numpy(),
        columns,
        rows,
        here.shape,
    )


def alike(valid: Bool[np.ndarray, "bands height width"]) -> list[np.ndarray]:
    """Groups of bands that hold data in the same pixels, and enough of it to be looked at without the others.

    Example:
        >>> valid = np.ones((17, 20, 30), dtype=bool)
        >>> valid[:8, :, :6] = valid[8, 3] = False
        >>> [group.tolist() for group in alike(valid)]
        [[0, 1, 2, 3, 4, 5, 6, 7], [9, 10, 11, 12, 13, 14, 15, 16]]
    """
    groups: dict[bytes, list[int]] = {}
    for band, known in enumerate(np.packbits(valid, axis=-1)):
        groups.setdefault(known.tobytes(), []).append(band)
    return [
        np.array(bands)
        for bands in groups.values()
        if len(bands) >= _FEWEST_ALIKE and valid[bands[0]].sum() >= _FEWEST_PIXELS
    ]


def _in_groups(cube: np.ndarray, valid: np.ndarray) -> Survey:
    """Survey of a cube whose bands hold data in different pixels."""
    groups = alike(valid)
    parts = [(bands, bands, survey(cube[bands], _or_none(valid[bands[0]]))) for bands in groups]
    left = np.setdiff1d(np.arange(len(cube)), np.concatenate([np.zeros(0, int), *groups]))
    if left.size:
        pixels = np.asarray(valid.any(axis=0))
        filled = cube.copy()
        filled[:, pixels] = fill_gaps(cube[:, None, pixels], valid[:, None, pixels])[:, 0]
        parts.append((left, np.arange(len(cube)), survey(filled, _or_none(pixels))))
    whole = {}
    for field in dataclasses.fields(Survey)[:-1]:
        found = [getattr(part, field.name) for _, _, part in parts]
        whole[field.name] = np.empty(len(cube), found[0].dtype)
        for (bands, numbers, _), values in zip(parts, found, strict=True):
            whole[field.name][bands] = values[np.isin(numbers, bands)]
    return Survey(**whole, size=max(part.size for _, _, part in parts))


def _or_none(pixels: np.ndarray) -> np.ndarray | None:
    return None if pixels.all() else pixels


def _details(cube: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """Noise level of each band by its diagonal details, without those of lost values; 0 if none is left."""
    levels = np.zeros(len(cube))
    for band, (image, out) in enumerate(zip(cube, lost, strict=True)):
        touched = out[1:, 1:] | out[1:, :-1] | out[:-1, 1:] | out[:-1, :-1]
        known = np.abs(haar_details(image))[~touched]
        levels[band] = np.median(known) / normal_quantile(0.5) if known.size else 0.0
    return levels


def _of_all_brightnesses(
    sigma: Float64[np.ndarray, " bands"], noisy: torch.Tensor, denoised: torch.Tensor, lost: torch.Tensor
) -> Float64[np.ndarray, " bands"]:
    """Noise level of bands in the mean of all brightnesses, given that of the flattest parts, which are often dark."""
    sigma = sigma.copy()
    bright = functional.avg_pool2d(denoised[None], 2, 1)[0]
    # without what other bands explain, most of the texture is gone, but not all growth is seen
    views = [_flat_parts(torch.where(lost, torch.nan, each)) for each in (_unexplained(noisy), noisy)]
    for band in range(len(noisy)):
        there = torch.stack([details[band] + texture[band] for details, texture in views]).isfinite().all(0)
        order = bright[band][there].argsort()
        if len(order) < _PARTS * _FEWEST_IN_PART:
            continue
        levels = [
            [
                _flat_level(details[band][there][part], texture[band][there][part])
                for part in (*order.tensor_split(_PARTS), order)
            ]
            for details, texture in views
        ]
        (grown, usual), (most, flattest) = ((math.sqrt(np.mean(np.square(each[:-1]))), each[-1]) for each in levels)
        if grown > _LEAST_GROWTH * usual > 0:
            sigma[band] = max(sigma[band], math.hypot(grown / usual * min(sigma[band], flattest), most) / math.sqrt(2))
    return sigma


def _flat_parts(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Diagonal details of images, and how much texture is around them."""
    rows, columns = images[:, :-1] - images[:, 1:], images[..., :-1] - images[..., 1:]
    rough = (rows[..., :-1] + rows[..., 1:]).square() + (columns[:, :-1] + columns[:, 1:]).square()
    return haar_details(images), functional.avg_pool2d(rough[None], 5, 1, 2, count_include_pad=False)[0]


def _flat_level(details: torch.Tensor, texture: torch.Tensor) -> float:
    flat = details[texture <= texture.sort().values[int(_FLAT * len(texture))]][None, None]
    return float(level_of_residual(flat, torch.zeros_like(flat, dtype=torch.bool)))


def _unexplained(noisy: torch.Tensor) -> torch.Tensor:
    """What a regression on the other bands leaves of each; of very few bands all."""
    if len(noisy) < _FEWEST_REGRESSED:
        return noisy
    flat = noisy.flatten(1).double()
    flat = flat - flat.mean(1, keepdim=True)
    covariance = flat @ flat.mT / flat.shape[1]
    inverse = torch.linalg.inv(covariance + 1e-9 * covariance.diagonal().mean() * torch.eye(len(noisy)))
    unexplained: torch.Tensor = (inverse @ flat) / inverse.diagonal()[:, None]
    return unexplained.reshape(noisy.shape).to(noisy)


def _stripes(residual: torch.Tensor, axis: int, sigma: torch.Tensor) -> np.ndarray:
    lines = residual if axis == 1 else residual.mT
    offset = column_offsets(lines[None].contiguous())
    if offset is None:
        return np.zeros(len(residual), int)
    return np.asarray((without_common(offset)[0].abs() > _STRIPE * sigma[:, None]).sum(1).numpy())


@dataclass(frozen=True)
class ResidualCheck:
    """What was taken away from each band, and whether it is noise.

    Attributes:
        before: Noise level before, in the unit of the cube (:func:`survey`).
        removed: Root mean square of what was taken away.
        after: What is left of the noise, at most: from the details of the denoised cube.
        whiteness: Largest autocorrelation, by magnitude, of the residual at lags of 1 and 2 pixels along rows, columns
            and diagonals; about 0 of white noise.
        eaten: Correlation of the residual with the denoised image, both as means of 4 x 4 pixels.
        structure: Variance of the residual's means of 8 x 8 pixels over what noise has that is correlated as the
            residual is with its next two pixels along rows and columns; 1 or less if it is such noise.
        structured: Bands whose residual has a structure that noise has not.
        contrast: Contrast of a weak absorption, 1 % deep and three bands wide, to a matched filter, in standard
            deviations, mean over all bands: before and after, each without and with a ridge of the noise before. What
            rises without the ridge alone is not real: directions without noise are not free of errors.
    """

    before: Float64[np.ndarray, " bands"]
    removed: Float64[np.ndarray, " bands"]
    after: Float64[np.ndarray, " bands"]
    whiteness: Float64[np.ndarray, " bands"]
    eaten: Float64[np.ndarray, " bands"]
    structure: Float64[np.ndarray, " bands"]
    structured: Bool[np.ndarray, " bands"]
    contrast: dict[str, float]


def residual_check(
    noisy: Real[np.ndarray, "bands height width"],
    denoised: Float[np.ndarray, "bands height width"],
    mask: Bool[np.ndarray, "height width"] | None = None,
    sigma: Float64[np.ndarray, " bands"] | None = None,
) -> ResidualCheck:
    """Ask of a denoised cube, without a clean one, whether what was taken away is noise.

    Lines that are off as a whole, stuck and dead values and single outliers are taken out of the residual first: they
    are no scene.

    Args:
        noisy: Noisy cube.
        denoised: Denoised cube.
        mask: True where a pixel holds data; None: everywhere.
        sigma: Noise level of each band before; None: estimated.

    Returns:
        What was found.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> clean = np.linspace(1, 2, 6)[:, None, None] * rng.random((64, 80)).cumsum(1)
        >>> noisy = clean + rng.normal(0, 0.3, clean.shape)
        >>> bool(residual_check(noisy, clean).structured.any())
        False
        >>> noisy[2, 16:48, 24:56] += 0.3
        >>> np.flatnonzero(residual_check(noisy, clean).structured)
        array([2])
    """
    bands = len(noisy)
    known = np.ones(noisy.shape[1:], bool) if mask is None else mask
    before = survey(noisy, mask).sigma if sigma is None else sigma
    removed, after, whiteness, eaten, structure = (np.zeros(bands) for _ in range(5))
    for band in range(bands):
        image = denoised[band].astype(np.float64)
        left = np.where(known, noisy[band].astype(np.float64) - image, 0.0)
        removed[band] = math.sqrt(np.square(left[known]).mean())
        here = known & ~no_measurements(torch.from_numpy(noisy[band : band + 1].astype(np.float32)))[0].numpy()
        if not here.any():
            continue
        flat = _without_lines(left, here)
        spread = math.sqrt(np.square(flat[here]).mean())
        if not spread > _ROUNDING * (np.abs(image[known]).max() + removed[band]):
            continue
        flat /= spread
        whiteness[band] = max((_lagged(flat, here, lag) for lag in _LAGS), key=abs)
        fine, weight = _block_means(flat, here, 4)
        scene, _ = _block_means(_without_lines(image, here), here, 4)
        if weight.sum() > 2 and scene.std() > 0 and fine.std() > 0:
            eaten[band] = np.corrcoef(fine, scene)[0, 1]
        coarse, weight = _block_means(flat, here, 8)
        if len(coarse) > 3:
            structure[band] = (np.square(coarse) * weight).mean() / _spread_of_near(flat, here, 8)
    usable = np.isfinite(before) & (before > 0)
    if min(noisy.shape[1:]) > 1:
        after = np.minimum(
            noise_level(np.where(known, denoised, 0).astype(np.float32)), np.where(usable, before, np.inf)
        )
    blocks = max(1, int(known.sum()) // 64)
    limit = 1.0 + STRUCTURE + _SIGMAS * math.sqrt(2.0 / blocks)
    contrast = {
        f"{when}{with_ridge}": absorption_contrast(cube[:, known], before if with_ridge else None)
        for when, cube in (("before", noisy), ("after", denoised))
        for with_ridge in ("", "_ridge")
    }
    return ResidualCheck(
        before, removed, after, whiteness, eaten, structure, (structure > limit) & (removed > 0), contrast
    )


STRUCTURE = 0.5
"""Excess of the variance of a residual's block means over that of noise, beside three standard deviations of chance,
from which it has the shape of something. The sample of the repository under Gaussian noise of 1 to 50 of 255, non-iid
noise, stripes, dead lines, impulses and mixtures, two seeds, by the filters of the planes: at most 1.07, no band
flagged. With the default weights, 47 of 200 bands of Indian Pines are, 3.1 and 2.0 in bands 16 and 33 (from 0), whose
residual has the shape of fields; MUUFL 8 of 64, pavia_crop none."""

_SIGMAS = 3.0  # of chance, beside
_ROUNDING = 1e-6  # of the largest value
_LAGS = ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0))


def _without_lines(image: np.ndarray, known: np.ndarray) -> np.ndarray:
    """An image without the means of its columns and rows, outliers drawn in; 0 where nothing is known."""
    values = image[known]
    middle = np.median(values)
    spread = 1.4826 * np.median(np.abs(values - middle))
    flat = image - middle
    if spread > 0:
        flat = flat.clip(-_FAR * spread, _FAR * spread)
    flat = np.where(known, flat, 0.0)
    for axis in (0, 1):
        count = np.maximum(known.sum(axis=axis, keepdims=True), 1)
        flat = np.where(known, flat - flat.sum(axis=axis, keepdims=True) / count, 0.0)
    return flat


def _lagged(flat: np.ndarray, known: np.ndarray, lag: tuple[int, int]) -> float:
    """Autocorrelation of an image of mean square 1."""
    down, across = lag
    height, width = flat.shape
    if height <= down or width <= abs(across):
        return 0.0
    one = np.s_[down:, max(across, 0) : width + min(across, 0)]
    other = np.s_[: height - down, max(-across, 0) : width + min(-across, 0)]
    count = int((known[one] & known[other]).sum())
    return float((flat[one] * flat[other]).sum() / max(count, 1))


def _spread_of_near(flat: np.ndarray, known: np.ndarray, side: int) -> float:
    """How much more the means of blocks vary than those of white noise, by what only the next two pixels share.

    Real noise is correlated over a pixel or two, where lines were resampled; what has the shape of a scene is so over
    many.
    """
    spread = 1.0
    for down, across in ((1, 0), (0, 1)):
        alike = {lag: max(0.0, _lagged(flat, known, (lag * down, lag * across))) for lag in (1, 2, 4)}
        spread *= 1.0 + 2.0 * sum(max(0.0, alike[lag] - alike[4]) * (side - lag) / side for lag in (1, 2))
    return spread


def _block_means(flat: np.ndarray, known: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Means of the blocks of which most is known, and how many pixels are."""
    height, width = (length // side * side for length in flat.shape)
    if not height or not width:
        return np.zeros(0), np.zeros(0)
    total, count = (
        each[:height, :width].reshape(height // side, side, -1, side).sum((1, 3)).astype(np.float64)
        for each in (flat, known)
    )
    most = count > side**2 / 2
    return total[most] / count[most], count[most]


def absorption_contrast(
    spectra: Real[np.ndarray, "bands pixels"], ridge: Float64[np.ndarray, " bands"] | None = None
) -> float:
    """Contrast of a weak absorption to a matched filter, in standard deviations, mean over the bands.

    Args:
        spectra: Spectra of a cube.
        ridge: Noise level of each band, whose square is added to the diagonal of the covariance; None: none but what
            keeps it invertible.

    Returns:
        ``sqrt(t' S^-1 t)`` for absorptions t of 1 % of the mean spectrum, a Gaussian of three bands' width, around each
        band; 0 for fewer than 3 bands or fewer pixels than bands.
    """
    bands, pixels = spectra.shape
    if bands < 3 or pixels <= bands:
        return 0.0
    exact = spectra.astype(np.float64)
    mean = exact.mean(axis=1)
    exact = exact - mean[:, None]
    covariance = exact @ exact.T / pixels
    scale = float(np.trace(covariance)) / bands
    if not scale > 0:
        return 0.0
    added = np.zeros(bands) if ridge is None else np.square(np.nan_to_num(ridge))
    covariance += np.diag(added + 1e-9 * scale)
    place = np.arange(bands)
    dips = 0.01 * mean[:, None] * np.exp(-0.5 * ((place[:, None] - place) / (3 / 2.355)) ** 2)
    return float(np.sqrt(np.maximum(np.sum(dips * np.linalg.solve(covariance, dips), axis=0), 0)).mean())
