"""The pilot filter against a slow twin, and what it is for: noise, impulses, stripes and dead columns."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn
from scipy.ndimage import gaussian_filter

from hsidenoise import corrupt, denoise
from hsidenoise.signal.pilot_filter import (
    BLOCK,
    COARSE,
    MEAN_NOISE,
    PILOT_SHARE,
    STRIDE,
    pilot_filter,
    repeat_pilot_filter,
)
from hsidenoise.signal.scaling import Scaling, fit_scaling

SHAPE = (7, 45, 52)


def scene(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """A smooth clean cube of three materials."""
    bands, height, width = shape
    rng = np.random.default_rng(3)
    share = gaussian_filter(rng.random((3, height, width)), (0, 4, 4))
    share /= share.sum(axis=0)
    spectra = gaussian_filter(rng.random((bands, 3)), (1.5, 0))
    cube = np.tensordot(spectra, share, 1)
    cube += 0.2 * (np.add.outer(np.arange(height), np.arange(width)) // 15 % 2)  # edges
    return ((cube - cube.min()) / (cube.max() - cube.min())).astype(np.float32)


def error(result: np.ndarray, clean: np.ndarray) -> float:
    return float(np.square(result.astype(np.float64) - clean).mean() ** 0.5)


def pilot_of(clean: np.ndarray) -> np.ndarray:
    """Stands for what a network finds: blurred, and off by a little in every band."""
    blurred: np.ndarray = gaussian_filter(clean, (0, 1.5, 1.5))
    return blurred.astype(np.float32)


def reference(noisy: np.ndarray, pilot: np.ndarray, sigma: float, stride: int) -> np.ndarray:
    """The Wiener filter of one band of white noise, block by block."""
    border = BLOCK
    images = [np.pad(each / sigma, border, mode="symmetric") for each in (noisy, pilot)]
    rows, columns = images[0].shape
    total, share = np.zeros((rows, columns)), np.zeros((rows, columns))
    noise = np.ones((BLOCK, BLOCK))
    noise[0, 0] = MEAN_NOISE
    for row in range(0, rows - BLOCK + 1, stride):
        for column in range(0, columns - BLOCK + 1, stride):
            here = slice(row, row + BLOCK), slice(column, column + BLOCK)
            block, guide = (dctn(image[here], norm="ortho") for image in images)
            gain = guide**2 / (guide**2 + noise)
            weight = 1 / (np.square(gain).sum() + 0.5)
            total[here] += weight * idctn(gain * block, norm="ortho")
            share[here] += weight
    return (total / share)[border:-border, border:-border] * sigma


@pytest.mark.parametrize("stride", [STRIDE, COARSE])
def test_is_the_wiener_filter_of_a_band(stride: int) -> None:
    rng = np.random.default_rng(0)
    clean = scene((1, 48, 56))
    clean = clean - clean.mean()  # the mean spectrum is not part of the filter
    noisy = (clean + rng.normal(0, 0.1, clean.shape)).astype(np.float32)
    pilot = clean.astype(np.float32)
    residual = np.abs(noisy - pilot)
    sigma = (
        float(np.quantile(residual, 0.3, method="nearest")) / 0.38532
    )  # 0.38532: half of a normal's probability of 0.3 on each side
    # what is off by three sigma counts half, as in the module
    drawn = pilot + (noisy - pilot) / (1 + ((noisy - pilot) / (3 * sigma)) ** 4)
    expected = (1 - PILOT_SHARE) * reference(drawn[0], pilot[0], sigma, stride) + PILOT_SHARE * pilot[0]
    np.testing.assert_allclose(pilot_filter(noisy, pilot, stride=stride)[0], expected, atol=2e-5)


@pytest.mark.parametrize("case", ["gaussian-30", "non-iid", "stripe", "deadline", "impulse", "mixture"])
def test_betters_a_pilot(case: str) -> None:
    clean = scene((12, 70, 61))
    pilot = pilot_of(clean)
    noisy = corrupt(clean, case, seed=1).noisy
    assert error(pilot_filter(noisy, pilot), clean) < 0.9 * error(pilot, clean)


def test_a_stripe_is_shifted_back() -> None:
    clean = scene((9, 64, 50))
    noisy = (clean + np.random.default_rng(0).normal(0, 0.05, clean.shape)).astype(np.float32)
    striped = noisy.copy()
    striped[4, :, 20] += 0.1  # two sigma: no value by itself is an outlier
    result = pilot_filter(striped, pilot_of(clean))
    assert np.abs(result - pilot_filter(noisy, pilot_of(clean))).max() < 0.02


def test_a_shift_of_most_bands_is_scene() -> None:
    clean = scene((9, 64, 50))
    clean[:, :, 20] += 0.1  # a narrow thing of the scene, which the pilot has lost
    noisy = (clean + np.random.default_rng(0).normal(0, 0.02, clean.shape)).astype(np.float32)
    pilot = clean.copy()
    pilot[:, :, 20] -= 0.03
    column = pilot_filter(noisy, pilot)[:, :, 20] - pilot[:, :, 20]
    assert column.mean() > 0.015


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 5, 2), (4, 9, 30), (2, 65, 7), (40, 6, 5)])
def test_any_size(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    noisy = rng.random(shape, dtype=np.float32)
    pilot = noisy.mean(axis=0, keepdims=True) + np.zeros_like(noisy)
    before = noisy.copy(), pilot.copy()
    result = pilot_filter(noisy, pilot)
    assert result.shape == shape
    assert np.isfinite(result).all()
    assert np.array_equal(noisy, before[0])
    assert np.array_equal(pilot, before[1])


def test_strips_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    clean = scene((5, 150, 33))
    noisy = corrupt(clean, "gaussian-30", seed=0).noisy
    usual = pilot_filter(noisy, pilot_of(clean))
    monkeypatch.setattr(import_module("hsidenoise.signal.pilot_filter"), "_ROWS", 1000)
    np.testing.assert_allclose(usual, pilot_filter(noisy, pilot_of(clean)), atol=2e-6)


def test_a_clean_cube_with_a_good_pilot_stays() -> None:
    clean = scene()
    assert error(pilot_filter(clean, clean), clean) < 1e-3


@pytest.mark.usefixtures("unchecked")
def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(7, 45, 52\) and a pilot of \(7, 45, 51\)"):
        pilot_filter(scene(), scene()[..., 1:])
    with pytest.raises(ValueError, match=r"stride=3 does not divide 16"):
        pilot_filter(scene(), scene(), stride=3)


def test_rounds_in_any_unit() -> None:
    clean = scene()
    noisy = corrupt(clean, "gaussian-30", seed=0).noisy
    pilot = pilot_of(clean)
    once = pilot_filter(noisy, pilot, stride=COARSE)
    assert repeat_pilot_filter(noisy, pilot, 0, Scaling("none", 0.0, 1.0, "")) is pilot
    counts = repeat_pilot_filter(500 * noisy + 100, 500 * pilot + 100, 2, Scaling("minmax", 100.0, 500.0, ""))
    np.testing.assert_allclose(counts, 500 * pilot_filter(noisy, once) + 100, atol=0.01)


class Mean(torch.nn.AvgPool2d):
    bands = 7


def test_denoise_makes_the_passes_that_it_is_asked_for() -> None:
    network = Mean(3, stride=1, padding=1, count_include_pad=False)
    network.pilot_rounds = 1
    noisy = corrupt(scene(), "gaussian-50", seed=0).noisy
    alone = denoise(noisy, network, pilot_rounds=0)
    scaling = fit_scaling(noisy)
    assert np.array_equal(denoise(noisy, network), repeat_pilot_filter(noisy, alone, 1, scaling))
    assert np.array_equal(denoise(noisy, network, pilot_rounds=2), repeat_pilot_filter(noisy, alone, 2, scaling))
    network.pilot_rounds = 0
    assert np.array_equal(denoise(noisy, network), alone)
    with pytest.raises(ValueError, match="pilot_rounds is -1; it is a whole number from 0 to 15"):
        denoise(noisy, network, pilot_rounds=-1)


def test_a_network_that_does_not_ask_is_left_alone() -> None:
    network = Mean(3, stride=1, padding=1, count_include_pad=False)
    noisy = corrupt(scene(), "gaussian-50", seed=0).noisy
    assert np.array_equal(denoise(noisy, network), denoise(noisy, network, pilot_rounds=0))
