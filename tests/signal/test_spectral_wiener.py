"""The spectral Wiener estimate against a slow second implementation, and what may be expected of it."""

import math
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsidenoise.signal.defects import STRIPE_SIGMAS, SUSPECT_SIGMAS
from hsidenoise.signal.noise_level import SIGMA_FLOOR
from hsidenoise.signal.spectral_wiener import (
    OUTLIER_SIGMAS,
    OUTLIER_SIGMAS_IN_FIT,
    ROUNDS,
    SUBSPACE,
    WINDOW,
    spectral_wiener,
)


def low_rank(rank, bands, height, width, seed=0):
    """Clean cube (1, bands, height, width) in [0, 1] whose spectra are mixtures of ``rank`` of them."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, rank, max(2, height // 6), max(2, width // 6), generator=generator)
    shares = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    spectra = torch.rand(bands, rank, generator=generator)
    cube = torch.einsum("br,nrhw->nbhw", spectra, shares)
    return cube / cube.max()


def gaussian(cube, sigma, seed=1):
    return cube + sigma * torch.randn(cube.shape, generator=torch.Generator().manual_seed(seed))


def error(estimate, clean):
    return (estimate - clean).square().mean().item()


def psnr(estimate, clean):
    return -10 * math.log10(error(estimate, clean))


def plain_by_definition(cube):
    """Plain estimate of one window in float64: a regression for every band, a loop over 2x2 blocks."""
    bands, height, width = cube.shape
    spectra = cube.reshape(bands, -1).astype(np.float64)
    mean = spectra.mean(axis=1, keepdims=True)
    centred = spectra - mean
    variance = np.empty(bands)
    for band in range(bands):
        others = np.delete(centred, band, axis=0).T
        weights = np.linalg.lstsq(others, centred[band], rcond=None)[0]
        regression = np.square(centred[band] - others @ weights).mean()
        details = [
            (cube[band, y, x] - cube[band, y + 1, x] - cube[band, y, x + 1] + cube[band, y + 1, x + 1]) / 2
            for y in range(0, height - 1, 2)
            for x in range(0, width - 1, 2)
        ]
        variance[band] = max(min(regression, np.square(details, dtype=np.float64).mean()), SIGMA_FLOOR**2)
    sigma = np.sqrt(variance)
    white = centred / sigma[:, None]
    energy, planes = np.linalg.eigh(white @ white.T / white.shape[1])
    denoised = np.zeros_like(white)
    for e, plane in zip(energy, planes.T, strict=True):
        if e > 1:
            denoised += (1 - 1 / e) * np.outer(plane, plane @ white)
    return (mean + denoised * sigma[:, None]).reshape(cube.shape), sigma


def median_spread(residual):
    """Standard deviation of each band by the (lower) median, for windows of at most 1024 pixels."""
    magnitudes = np.sort(np.abs(residual.reshape(len(residual), -1)), axis=1)
    return np.maximum(magnitudes[:, (magnitudes.shape[1] - 1) // 2] / 0.6745, SIGMA_FLOOR)


def bridged(cube, dead):
    """Dead columns (band, column) filled in linearly, row by row."""
    filled = cube.copy()
    for band in range(len(cube)):
        alive = [x for x in range(cube.shape[2]) if (band, x) not in dead]
        for row in range(cube.shape[1]):
            filled[band, row] = np.interp(range(cube.shape[2]), alive, cube[band, row, alive])
    return filled


def offset_of(column, chance):
    """What a column of residuals is off by: its median, if neither signs nor size are what chance may give."""
    rows = len(column)
    unbalanced = abs(np.sign(column).mean()) > SUSPECT_SIGMAS / math.sqrt(rows)
    median = np.sort(column)[(rows - 1) // 2]
    off = abs(median) > max(STRIPE_SIGMAS * chance * math.sqrt(math.pi / 2 / rows), 1 / 255)
    return median if unbalanced and off else 0.0


def robust_by_definition(cube, dead=()):
    """Repaired, plain and robust estimate of one window in float64: a small linear system for every pixel."""
    cube = cube.astype(np.float64)
    mask = np.zeros(cube.shape, dtype=bool)
    for band, x in dead:
        mask[band, :, x] = True
    repaired = bridged(cube, dead)
    estimate, _ = plain_by_definition(repaired)
    for number in range(ROUNDS):
        repaired = np.where(mask, estimate, repaired)
        if number >= ROUNDS / 2:
            residual = repaired - estimate
            chance = median_spread(residual)
            for x in range(cube.shape[2]):
                offsets = [offset_of(residual[band, :, x], chance[band]) for band in range(len(cube))]
                if np.count_nonzero(offsets) < len(cube) / 2:
                    repaired[:, :, x] -= np.array(offsets)[:, None]
        residual = repaired - estimate
        ratio = residual / (OUTLIER_SIGMAS * median_spread(residual)[:, None, None])
        estimate, _ = plain_by_definition(estimate + residual / (1 + ratio**4))
    spread = median_spread(repaired - estimate)[:, None]
    spectra = estimate.reshape(len(estimate), -1)
    mean = spectra.mean(axis=1)
    energy, planes = np.linalg.eigh(np.cov(spectra, bias=True))
    prior, basis = energy[-SUBSPACE:], planes[:, -SUBSPACE:]
    fitted = np.empty_like(spectra)
    pixels = zip(repaired.reshape(len(cube), -1).T, spectra.T, mask.reshape(len(cube), -1).T, strict=True)
    for pixel, (seen, explained, lost) in enumerate(pixels):
        ratio = (seen - explained) / (OUTLIER_SIGMAS_IN_FIT * spread[:, 0])
        precision = np.where(lost, 0, 1 / (1 + ratio**4) / spread[:, 0] ** 2)
        # the mean of a normal posterior: prior N(0, energy) of each coefficient, one observation per band
        normal = basis.T @ (precision[:, None] * basis) + np.diag(1 / prior)
        fitted[:, pixel] = mean + basis @ np.linalg.solve(normal, basis.T @ (precision * (seen - mean)))
    robust = fitted.reshape(cube.shape)
    repaired = np.where(mask, robust, repaired)
    return repaired, plain_by_definition(repaired)[0], robust


@pytest.mark.parametrize("size", [(24, 30), (23, 31), (64, 64)])
@pytest.mark.parametrize("sigma", [0.0, 0.03, 0.2])
def test_equals_the_definition(size, sigma):
    noisy = gaussian(low_rank(3, 9, *size), torch.linspace(0.3, 2, 9)[:, None, None] * sigma)
    expected, levels = plain_by_definition(noisy[0].numpy())
    estimate = spectral_wiener(noisy)
    np.testing.assert_allclose(estimate.plain[0].numpy(), expected, atol=2e-5)
    np.testing.assert_allclose(estimate.sigma[0].numpy(), levels, rtol=1e-3)


@pytest.mark.parametrize("sigma", [0.02, 0.1])
def test_robust_equals_the_definition(sigma):
    noisy = gaussian(low_rank(3, 9, 23, 31), sigma)
    for band, column in ((2, 7), (2, 8), (4, 0)):
        noisy[0, band, :, column] = 0
    noisy[0, 5, 3::4, ::5] = 1
    noisy[0, 7, :, 11] -= 0.3
    repaired, plain, robust = robust_by_definition(noisy[0].numpy(), {(2, 7), (2, 8), (4, 0)})
    estimate = spectral_wiener(noisy)
    assert not np.allclose(repaired[7, :, 11], noisy[0, 7, :, 11], atol=0.05)  # or there is nothing to compare
    np.testing.assert_allclose(estimate.repaired[0].numpy(), repaired, atol=2e-4)
    np.testing.assert_allclose(estimate.plain[0].numpy(), plain, atol=2e-4)
    np.testing.assert_allclose(estimate.robust[0].numpy(), robust, atol=2e-4)
    off = (noisy[0].numpy() - robust).mean(axis=1, keepdims=True)
    np.testing.assert_allclose(estimate.column[0].numpy(), np.broadcast_to(off, robust.shape), atol=2e-4)


def test_dead_columns_are_told_by_the_other_bands():
    clean = low_rank(3, 20, 40, 52)
    alive = gaussian(clean, 0.1)
    noisy = alive.clone()
    noisy[0, ::4, :, 9:12] = 0.0
    noisy[0, 1::4, :, 0] = 0.7  # any constant, the edge too
    noisy[0, 2::4, :, -1] = 0.0
    estimate, without = spectral_wiener(noisy), spectral_wiener(alive)
    for name in ("plain", "robust"):
        found, expected = getattr(estimate, name), getattr(without, name)
        assert error(found, clean) < 1.15 * error(expected, clean)
        for bands, columns in ((slice(0, None, 4), slice(9, 12)), (slice(1, None, 4), 0), (slice(2, None, 4), -1)):
            assert error(found[0, bands, :, columns], clean[0, bands, :, columns]) < 4 * error(expected, clean)
    same = noisy == alive
    assert torch.equal(estimate.repaired[same], noisy[same])


def test_stripes_are_shifted_back():
    clean = low_rank(3, 20, 40, 52)
    noisy = gaussian(clean, 0.05)
    striped = noisy.clone()
    rng = np.random.default_rng(0)
    for band in range(0, 20, 3):
        striped[0, band, :, rng.choice(52, 5, replace=False)] -= 0.2
    estimate = spectral_wiener(striped)
    assert error(estimate.plain, clean) < 1.3 * error(spectral_wiener(noisy).plain, clean)
    off, was_off = ((cube - noisy).mean(dim=2).square().mean() for cube in (estimate.repaired, striped))
    assert off < 0.15 * was_off
    assert (estimate.repaired[0, 1::3] == noisy[0, 1::3]).float().mean() > 0.99


def test_what_is_off_in_most_bands_is_the_scene():
    """A line across all bands that the estimate does not explain: only two bands, which vouch for nothing."""
    noisy = gaussian(low_rank(1, 2, 40, 52), 0.2)
    noisy[:, :, :, 17] += 0.4
    assert torch.equal(spectral_wiener(noisy).repaired, noisy)


def test_what_the_scene_is_stays():
    """Constant columns of a frame without data, of a flat background and of a band without noise are no defects."""
    noisy = gaussian(low_rank(3, 12, 40, 52), 0.05)
    noisy[:, :, :, :6] = 0.0
    assert torch.equal(spectral_wiener(noisy).repaired, noisy)
    clean = low_rank(3, 12, 40, 52)
    clean[0, 3] = torch.linspace(0, 1, 52)  # each column one value, but no noise
    assert error(spectral_wiener(clean).repaired, clean) < 1e-12
    flat = gaussian(low_rank(3, 12, 40, 52), 0.05)
    flat[0, 4] = 0.3  # a band that is dead as a whole: nothing to bridge from
    assert torch.isfinite(spectral_wiener(flat).repaired).all()


def test_a_few_rows_say_nothing_of_a_column():
    noisy = gaussian(low_rank(3, 12, 7, 52), 0.05)
    noisy[0, 3, :, 9] = 0.0
    noisy[0, 5, :, 20] -= 0.5
    assert torch.equal(spectral_wiener(noisy).repaired, noisy)


@pytest.mark.parametrize("sigma", [0.02, 0.05, 0.1, 0.2])
@pytest.mark.parametrize(("rank", "bands"), [(2, 31), (4, 31), (2, 60), (4, 60)])
def test_noise_falls_by_the_share_of_the_subspace(rank, bands, sigma):
    """Of white noise only rank / bands lies in the subspace; where noise drowns a plane even less is kept."""
    clean = low_rank(rank, bands, 60, 62)
    noisy = gaussian(clean, sigma)
    estimate = spectral_wiener(noisy)
    expected = rank / bands * error(noisy, clean)
    assert 0.4 * expected < error(estimate.plain, clean) < 1.4 * expected
    assert error(estimate.robust, clean) < 1.6 * expected
    assert estimate.plain.sub(clean).mean().abs() < 0.01 * sigma


@pytest.mark.parametrize("size", [(60, 62), (130, 70)])
@pytest.mark.parametrize("rank", [1, 3, 6, 8])
def test_a_clean_cube_is_left_alone(rank, size):
    clean = low_rank(rank, 31, *size)
    estimate = spectral_wiener(clean)
    assert psnr(estimate.plain, clean) > 90
    if rank <= SUBSPACE:
        assert psnr(estimate.robust, clean) > 90
        assert estimate.column.abs().max() < 1e-3


def test_a_real_crop_is_left_alone_but_for_the_noise_of_its_camera(real_crop):
    clean = torch.from_numpy(real_crop.copy())[None]
    estimate = spectral_wiener(clean)
    assert psnr(estimate.plain, clean) > 45
    assert psnr(estimate.robust, clean) > 40


def test_noise_levels_of_single_bands_are_found():
    sigma = torch.tensor([10.0, 70, 30, 50]).repeat(8)[:31] / 255
    estimate = spectral_wiener(gaussian(low_rank(4, 31, 60, 62), sigma[:, None, None]))
    torch.testing.assert_close(estimate.sigma[0], sigma, rtol=0.1, atol=0)


def test_a_very_noisy_band_does_not_harm_the_others():
    clean = low_rank(3, 31, 60, 62)
    sigma = torch.full((31, 1, 1), 0.05)
    even = spectral_wiener(gaussian(clean, sigma)).plain
    sigma[7] = 2.0
    spoilt = spectral_wiener(gaussian(clean, sigma)).plain
    others = torch.arange(31) != 7
    assert error(spoilt[:, others], clean[:, others]) < 1.2 * error(even[:, others], clean[:, others])
    assert error(spoilt[:, 7], clean[:, 7]) < 0.05  # of 4.0


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
def test_robust_beats_plain_where_there_are_impulses(share):
    clean = low_rank(3, 31, 60, 62)
    noisy = gaussian(clean, 0.05)
    generator = torch.Generator().manual_seed(2)
    hit = torch.rand(clean.shape, generator=generator) < share
    hit[:, torch.arange(31) % 3 > 0] = False
    noisy[hit] = (torch.rand(int(hit.sum()), generator=generator) < 0.5).float()
    estimate = spectral_wiener(noisy)
    assert error(estimate.robust, clean) < 0.7 * error(estimate.plain, clean)


def smooth(bands, height, width):
    """Clean cube (1, bands, height, width) in [0, 1] whose neighbouring bands resemble each other."""
    cube = low_rank(3, bands, height, width)
    kernel = torch.exp(-torch.linspace(-2, 2, 9).square() / 2)
    padded = torch.nn.functional.pad(cube.permute(0, 2, 3, 1).reshape(-1, 1, bands), (4, 4), mode="replicate")
    blurred = torch.nn.functional.conv1d(padded, (kernel / kernel.sum())[None, None])
    return blurred.reshape(1, height, width, bands).permute(0, 3, 1, 2)


def test_a_band_that_is_mostly_impulses_is_told_by_its_neighbours(monkeypatch):
    clean = smooth(31, 60, 64)
    noisy = gaussian(clean, 0.1)
    generator = torch.Generator().manual_seed(5)
    lost = [4, 17, 18, 30]
    draw = torch.rand(clean[:, lost].shape, generator=generator)
    noisy[:, lost] = torch.where(draw < 0.35, 0.0, torch.where(draw < 0.7, 1.0, noisy[:, lost]))
    told = spectral_wiener(noisy).robust
    monkeypatch.setattr(import_module("hsidenoise.signal.spectral_wiener"), "LOST_SIGMA", 10.0)
    left = spectral_wiener(noisy).robust
    others = [band for band in range(31) if band not in lost]
    assert error(told[:, lost], clean[:, lost]) < 0.2 * error(left[:, lost], clean[:, lost])
    assert error(told[:, lost], clean[:, lost]) < 0.01
    assert error(told[:, others], clean[:, others]) < 1.1 * error(left[:, others], clean[:, others])


def test_strong_noise_on_every_band_loses_none(monkeypatch):
    noisy = gaussian(smooth(31, 60, 64), 95 / 255)
    found = spectral_wiener(noisy).robust
    monkeypatch.setattr(import_module("hsidenoise.signal.spectral_wiener"), "LOST_SIGMA", 10.0)
    torch.testing.assert_close(found, spectral_wiener(noisy).robust, rtol=0, atol=0)


def test_columns_that_are_off_show_in_the_column_plane():
    clean = low_rank(3, 31, 60, 62)
    noisy = gaussian(clean, 0.05)
    noisy[0, 5, :, 10] -= 0.2
    noisy[0, 7, :, 20] = 0.0
    column = spectral_wiener(noisy).column
    assert torch.equal(column, column[:, :, :1].expand_as(column))
    assert abs(column[0, 5, 0, 10] + 0.2) < 0.05
    assert abs(column[0, 7, 0, 20] + clean[0, 7, :, 20].mean()) < 0.05
    others = column[0].clone()
    others[5, :, 10] = others[7, :, 20] = 0
    assert others.abs().max() < 0.05


def test_each_cube_of_a_batch_is_estimated_alone():
    cubes = [gaussian(low_rank(rank, 12, 70, 40, seed=rank), 0.02 * rank, seed=rank) for rank in (1, 3, 5)]
    together = spectral_wiener(torch.cat(cubes))
    for position, cube in enumerate(cubes):
        for whole, alone in zip(together, spectral_wiener(cube), strict=True):
            torch.testing.assert_close(whole[position], alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e30])
@pytest.mark.parametrize("bands", [1, 5, 12, 31])
def test_a_value_that_cannot_be_squared_spoils_its_own_cube_only(bands, bad):
    cubes = gaussian(low_rank(3, bands, 20, 30), 0.1).repeat(3, 1, 1, 1)
    cubes[1, bands // 2, 5, 6] = bad
    estimate, good = spectral_wiener(cubes), spectral_wiener(cubes[::2])
    for plane, expected in zip(estimate, good, strict=True):
        assert plane[1].isnan().all()
        torch.testing.assert_close(plane[::2], expected)


def test_a_nan_spoils_the_windows_that_hold_it_only():
    noisy = gaussian(low_rank(3, 5, 40, 200), 0.1)
    spoilt = noisy.clone()
    spoilt[0, 2, 3, 10] = torch.nan
    plain, expected = spectral_wiener(spoilt).plain, spectral_wiener(noisy).plain
    assert plain[..., :30].isnan().all()
    torch.testing.assert_close(plain[..., 80:], expected[..., 80:])


@pytest.mark.parametrize("axis", [2, 3])
def test_a_pixel_is_reached_only_from_less_than_a_window_away(axis):
    noisy = gaussian(low_rank(3, 5, 200, 40), 0.1)
    if axis == 3:
        noisy = noisy.mT.contiguous()
    changed = noisy.clone()
    changed.narrow(axis, 90, 1).fill_(3.0)
    for before, after in zip(spectral_wiener(noisy)[1:4], spectral_wiener(changed)[1:4], strict=True):
        same = (before == after).movedim(axis, 0).flatten(1).all(dim=1)
        assert same[: 91 - WINDOW].all()
        assert same[90 + WINDOW :].all()
        assert not same[80:100].any()


def test_the_outermost_half_window_knows_nothing_of_the_rest():
    """Only the first window covers it, so it is estimated as if the cube ended there."""
    noisy = gaussian(low_rank(3, 5, 40, 3 * WINDOW), 0.1)
    alone = spectral_wiener(noisy[..., :WINDOW])
    whole = spectral_wiener(noisy)
    half = WINDOW // 2
    for there, here in zip(whole[:3], alone[:3], strict=True):
        torch.testing.assert_close(there[..., :half], here[..., :half], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis", [2, 3])
def test_windows_overlap_by_half_and_are_blended_linearly(axis):
    noisy = gaussian(low_rank(3, 5, 40, 96), 0.1)
    noisy = noisy if axis == 3 else noisy.mT.contiguous()
    first, second = (spectral_wiener(noisy.narrow(axis, start, 64)) for start in (0, 32))
    rise = torch.cat([torch.arange(1.0, 33.0), torch.arange(32.0, 0.0, -1.0)])
    shape = (64, 1) if axis == 2 else (64,)
    for whole, a, b in zip(spectral_wiener(noisy)[:3], first[:3], second[:3], strict=True):
        total, weights = torch.zeros_like(whole), torch.zeros_like(whole)
        for start, part in ((0, a), (32, b)):
            total.narrow(axis, start, 64).add_(part * rise.reshape(shape))
            weights.narrow(axis, start, 64).add_(rise.reshape(shape))
        torch.testing.assert_close(whole, total / weights, rtol=1e-4, atol=1e-5)


def test_windows_are_blended_without_seams():
    """Steps across the borders of windows are no larger than elsewhere."""
    clean = low_rank(3, 12, 130, 200)
    left = spectral_wiener(gaussian(clean, 0.1)).plain - clean
    steps = left.diff(dim=3).square().mean(dim=(0, 1, 2)).sqrt()
    assert steps.max() < 1.5 * steps.median()


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (3, 200), (200, 3), (65, 64), (64, 65), (130, 70), (96, 97)])
def test_any_size_is_covered_with_weights_that_sum_to_one(size):
    constant = torch.linspace(0.1, 0.9, 7)[None, :, None, None].expand(2, 7, *size)
    estimate = spectral_wiener(constant)
    torch.testing.assert_close(estimate.plain, constant, rtol=0, atol=1e-6)
    torch.testing.assert_close(estimate.robust, constant, rtol=0, atol=1e-6)
    torch.testing.assert_close(estimate.sigma, torch.full((2, 7), SIGMA_FLOOR))


@given(
    bands=st.integers(1, 9),
    height=st.integers(1, 80),
    width=st.integers(1, 80),
    batch=st.integers(1, 2),
    scale=st.sampled_from([0.0, 1e-12, 1.0, 1e4, 1e9]),
    offset=st.sampled_from([0.0, -3.0, 1e4]),
)
@settings(max_examples=60, deadline=None)
def test_whatever_comes_in_what_goes_out_is_finite(bands, height, width, batch, scale, offset):
    noisy = offset + scale * torch.randn(batch, bands, height, width, generator=torch.Generator().manual_seed(0))
    estimate = spectral_wiener(noisy)
    for plane in estimate[:3]:
        assert plane.shape == noisy.shape
        assert plane.dtype == torch.float32
        assert plane.isfinite().all()
    assert estimate.sigma.shape == noisy.shape[:2]
    assert (estimate.sigma >= SIGMA_FLOOR * (1 - 1e-6)).all()


@pytest.mark.parametrize("size", [(4, 5), (2, 3), (5, 6)])
def test_fewer_pixels_than_bands_leave_the_cube_as_it_is(size):
    """A regression on more bands than pixels explains all: nothing can be called noise."""
    noisy = gaussian(low_rank(2, 31, *size), 0.1)
    estimate = spectral_wiener(noisy)
    torch.testing.assert_close(estimate.plain, noisy, rtol=0, atol=0.02)
    assert estimate.robust.isfinite().all()


def test_one_band_is_shrunk_towards_its_mean_by_its_own_details():
    clean = low_rank(1, 1, 60, 62)
    noisy = gaussian(clean, 0.1)
    estimate = spectral_wiener(noisy)
    variance = noisy.var(correction=0)
    kept = 1 - estimate.sigma[0, 0].square() / variance
    torch.testing.assert_close(estimate.plain, noisy.mean() + kept * (noisy - noisy.mean()), rtol=0, atol=1e-5)
    assert abs(estimate.sigma[0, 0] - 0.1) < 0.01


def test_repeated_bands_vouch_for_each_other():
    noisy = gaussian(low_rank(1, 1, 20, 30), 0.1).expand(1, 12, 20, 30)
    torch.testing.assert_close(spectral_wiener(noisy).plain, noisy, rtol=0, atol=1e-5)


def test_one_enormous_value_is_survived():
    noisy = gaussian(low_rank(3, 12, 20, 30), 0.1)
    noisy[0, 3, 4, 5] = 1e10
    assert all(plane.isfinite().all() for plane in spectral_wiener(noisy))


def test_the_order_of_the_bands_does_not_matter():
    noisy = gaussian(low_rank(3, 12, 70, 30), 0.1)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    for plane, permuted in zip(spectral_wiener(noisy), spectral_wiener(noisy[:, order]), strict=True):
        torch.testing.assert_close(permuted, plane[:, order], rtol=1e-4, atol=1e-5)


def test_the_unit_does_not_matter_above_the_floor():
    noisy = gaussian(low_rank(3, 12, 30, 40), 0.1)
    for plane, scaled in zip(spectral_wiener(noisy), spectral_wiener(1000 * noisy), strict=True):
        torch.testing.assert_close(scaled / 1000, plane, rtol=1e-3, atol=1e-4)


def test_a_number_of_threads_may_be_set():
    program = (
        "import torch; torch.set_num_threads(2)\n"
        "from hsidenoise.signal.spectral_wiener import spectral_wiener\n"
        "assert spectral_wiener(torch.rand(2, 200, 20, 20)).plain.isfinite().all()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_no_gradient_and_the_input_is_left_alone():
    noisy = gaussian(low_rank(3, 5, 70, 30), 0.1).requires_grad_()
    before = noisy.detach().clone()
    assert not any(plane.requires_grad for plane in spectral_wiener(noisy))
    assert torch.equal(noisy, before)


def test_autocast_changes_nothing():
    noisy = gaussian(low_rank(3, 12, 70, 30), 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = spectral_wiener(noisy)
    for plane, expected in zip(inside, spectral_wiener(noisy), strict=True):
        assert plane.dtype == torch.float32
        assert torch.equal(plane, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_floats_are_estimated_in_float32(dtype):
    noisy = gaussian(low_rank(3, 12, 20, 30), 0.1).to(dtype)
    for plane, expected in zip(spectral_wiener(noisy), spectral_wiener(noisy.float()), strict=True):
        assert torch.equal(plane, expected)


@pytest.mark.gpu
def test_a_gpu_finds_the_same():
    noisy = gaussian(low_rank(3, 31, 130, 70), 0.1)
    for plane, expected in zip(spectral_wiener(noisy.cuda()), spectral_wiener(noisy), strict=True):
        torch.testing.assert_close(plane.cpu(), expected, rtol=1e-3, atol=1e-4)
