"""Values that are no measurements: what is found, and what must be left alone."""

import numpy as np
import pytest
import torch

from hsidenoise.noise.cases import corrupt
from hsidenoise.signal.lost_values import dead_lines, fill, fill_gaps, fill_invalid, no_measurements, stuck_pixels
from hsidenoise.signal.planes.basis import band_kernels, find_basis


def noisy(real_crop, case="gaussian-30"):
    return torch.from_numpy(corrupt(real_crop, case, seed=0).noisy)


@pytest.mark.parametrize("axis", [1, 2])
def test_dead_lines_along_columns_and_rows(real_crop, axis):
    cube = noisy(real_crop)
    lines = [3, 4, 30]
    (cube[5] if axis == 2 else cube[5].T)[lines] = 0.25
    found = dead_lines(cube, axis=axis)
    assert found.nonzero().tolist() == [[5, line] for line in lines]
    assert not dead_lines(cube, axis=3 - axis).any()


def test_a_frame_without_data_and_a_band_without_noise_have_no_dead_lines(real_crop):
    cube = noisy(real_crop)
    cube[:, :, :6] = 0.0  # in all bands
    cube[7] = torch.linspace(0, 1, 64)  # constant along every column
    assert not dead_lines(cube).any()


@pytest.mark.parametrize("case", ["impulse", "mixture"])
@pytest.mark.parametrize("unit", [(1.0, 0.0), (8000.0, 1000.0)])
def test_salt_and_pepper_is_found_and_nothing_else(real_crop, case, unit):
    corruption = corrupt(real_crop, case, seed=1)
    cube = torch.from_numpy(corruption.noisy)
    hit = torch.zeros_like(cube, dtype=torch.bool)
    for band in corruption.affected["impulse"]:
        hit[band] = (cube[band] == 0) | (cube[band] == 1)
    dead = dead_lines(cube)[:, None, :].expand_as(cube)
    found = stuck_pixels(cube * unit[0] + unit[1], dead)
    assert torch.equal(found, hit)


@pytest.mark.parametrize("steps", [30, 255, 4095])
def test_whole_numbers_and_saturated_regions_are_no_stuck_pixels(real_crop, steps):
    assert not stuck_pixels(torch.from_numpy(np.round(real_crop * steps))).any()
    assert not stuck_pixels((noisy(real_crop) * steps).round()).any()
    bright = noisy(real_crop, "gaussian-5").clamp(max=0.2)
    assert (bright == np.float32(0.2)).float().mean() > 0.01
    assert not stuck_pixels(bright).any()


def test_noise_that_was_cut_off_at_the_ends_is_no_stuck_pixel(real_crop):
    for case in ("gaussian-30", "gaussian-70"):
        assert not stuck_pixels(noisy(real_crop, case).clamp(0, 1)).any()


def test_fill_replaces_what_is_lost_by_its_neighbourhood_and_nothing_else(structured_cube, rng):
    clean = torch.from_numpy(structured_cube.copy())
    lost = torch.from_numpy(rng.random(clean.shape) < 0.5)
    filled = fill(torch.where(lost, 100.0, clean), lost)
    assert torch.equal(filled[~lost], clean[~lost])
    assert (filled - clean).abs().mean() < 0.02
    whole = torch.zeros_like(lost)
    whole[3] = True
    assert torch.equal(fill(clean, whole), clean)  # nothing is known of band 3


def test_fill_invalid_mirrors_the_valid_pixels_of_a_column():
    """Against the obvious way, pixel by pixel."""
    rng = np.random.default_rng(3)
    cube = torch.from_numpy(rng.random((2, 9, 7), dtype=np.float32))
    mask = torch.from_numpy(rng.random((9, 7)) < 0.6)
    mask[:, 4], mask[:3, 0], mask[3:, 0] = False, False, True
    filled = fill_invalid(torch.where(mask, cube, torch.nan), mask)
    assert torch.equal(filled[:, mask], cube[:, mask])
    assert torch.equal(filled[:, :3, 0], cube[:, [5, 4, 3], 0])
    spectra = {tuple(spectrum) for spectrum in cube[:, mask].T.tolist()}
    assert {tuple(spectrum) for spectrum in filled.flatten(1).T.tolist()} == spectra


def slanted(height, width):
    rows, columns = np.mgrid[:height, :width]
    return columns > 8 + 0.3 * rows


def test_what_fill_gaps_puts_beyond_a_slanted_border_is_not_taken_for_scene(rng):
    known = slanted(60, 50)
    noise = rng.normal(300, 1, (80, 60, 50)).astype(np.float32)
    filled = torch.from_numpy(fill_gaps(noise, np.broadcast_to(known, noise.shape)))
    assert np.array_equal(filled.numpy()[:, known], noise[:, known])
    assert filled[:, ~known].std(1).mean() == pytest.approx(1, abs=0.05)
    assert find_basis(filled, torch.ones(80), band_kernels(torch.ones(80))).basis.shape[1] < 4  # copies: 11


def test_fill_gaps_leaves_outliers_out_and_continues_dead_lines(rng):
    known = slanted(60, 50)
    cube = np.linspace(0, 1, 50, dtype=np.float32) + rng.normal(0, 0.01, (4, 60, 50)).astype(np.float32)
    clean = cube.copy()
    cube[1][rng.random((60, 50)) < 0.3] = 2
    cube[2, :, 12] = 0
    filled = fill_gaps(np.where(known, cube, np.nan), np.broadcast_to(known, cube.shape))
    lost = no_measurements(torch.from_numpy(filled)).numpy()
    assert lost[2, :, 12].all()
    assert lost[1].mean() > 0.25
    beside = np.pad(known[:, 4:], [(0, 0), (0, 4)], constant_values=True) & ~known
    assert np.abs(filled - clean)[~lost & beside].max() < 0.2


@pytest.mark.parametrize(("steps", "lowest"), [(255, -100), (255, 0), (1023, 0)])
def test_whole_numbers_around_a_gap_are_no_stuck_pixels(real_crop, rng, steps, lowest):
    cube = real_crop[::3] + rng.normal(0, 0.02, real_crop[::3].shape)
    counts = np.round(cube * steps).clip(min=lowest).astype(np.float32)
    known = np.ones(counts.shape, dtype=bool)
    known[:, 20:40, 30:50] = known[:4, 50:, :20] = False
    filled = fill_gaps(np.where(known, counts, np.nan), known)
    assert not no_measurements(torch.from_numpy(filled)).any()
    assert np.array_equal(filled[known], counts[known])
    assert np.array_equal(filled, filled.round())


def test_whole_numbers_with_others_between_them_are_no_stuck_pixels(real_crop, rng):
    counts = np.round((real_crop[::6] + rng.normal(0, 0.02, real_crop[::6].shape)) * 255)
    counts[:, :, 40:] /= np.linspace(1, 1.5, 24)  # as a noise level of each pixel divides them
    assert not no_measurements(torch.from_numpy(counts.astype(np.float32))).any()
