"""The filters of planes against slow twins."""

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn
from scipy.ndimage import gaussian_filter

from hsidenoise.signal.planes.filter import threshold, wiener

SHAPE = (3, 21, 34)


def images(seed=0):
    rng = np.random.default_rng(seed)
    clean = 8 * gaussian_filter(rng.normal(size=SHAPE), (0, 3, 3)) / 0.1
    return clean.astype(np.float32), (clean + rng.normal(size=SHAPE)).astype(np.float32)


def blocks_of(image, block, stride):
    """First row and column, in an image continued by its mirror image, of every block that meets it."""
    edge = block - stride
    rows, columns = (range(0, n + -n % stride + 2 * edge - block + 1, stride) for n in image.shape)
    return edge, [(row, column) for row in rows for column in columns]


def reference(planes, rule, block, stride):
    """``rule`` makes of the blocks (planes, block, block) at one place new ones and their weight."""
    edge, places = blocks_of(planes[0], block, stride)
    after = [edge + -n % stride for n in planes.shape[1:]]
    padded = np.pad(planes, [(0, 0), (edge, after[0]), (edge, after[1])], mode="symmetric").astype(np.float64)
    total, share = np.zeros_like(padded), np.zeros_like(padded)
    for row, column in places:
        here = np.s_[:, row : row + block, column : column + block]
        values, weight = rule(dctn(padded[here], axes=(1, 2), norm="ortho"), here)
        weight = np.reshape(weight, (-1, 1, 1))
        total[here] += weight * idctn(values, axes=(1, 2), norm="ortho")
        share[here] += weight
    return (total / share)[:, edge : edge + planes.shape[1], edge : edge + planes.shape[2]]


@pytest.mark.parametrize(("block", "stride"), [(8, 1), (8, 4)])
def test_threshold_against_its_slow_twin(block, stride):
    _, noisy = images()

    def rule(found, _):
        kept = np.abs(found) > 2.5
        kept[:, 0, 0] = True
        return found * kept, 1 / kept.sum((1, 2))

    result = threshold(torch.from_numpy(noisy), block=block, stride=stride, level=2.5).numpy()
    np.testing.assert_allclose(result, reference(noisy, rule, block, stride), atol=1e-4)


@pytest.mark.parametrize(("block", "stride"), [(8, 2), (16, 4)])
def test_wiener_against_its_slow_twin(block, stride):
    clean, noisy = images()
    edge = block - stride
    after = [edge + -n % stride for n in SHAPE[1:]]
    guide = np.pad(clean, [(0, 0), (edge, after[0]), (edge, after[1])], mode="symmetric").astype(np.float64)
    noise = np.ones((block, block))
    noise[0, 0] = 0.2
    lacking = []

    def rule(found, here):
        energy = dctn(guide[here], axes=(1, 2), norm="ortho") ** 2
        gain = energy / (energy + noise)
        lacking.append((2 * gain - gain**2).mean((1, 2)))
        return found * gain, 1 / ((gain**2).sum((1, 2)) + 0.5)

    result, absorbed = wiener(
        torch.from_numpy(noisy), torch.from_numpy(clean), block=block, stride=stride, turn=False, mean_noise=0.2
    )
    np.testing.assert_allclose(result.numpy(), reference(noisy, rule, block, stride), atol=1e-4)
    np.testing.assert_allclose(absorbed.numpy(), np.mean(lacking, axis=0), rtol=1e-4)


def test_planes_that_are_turned_give_the_same_result_turned():
    """Where cells find their own directions, those that the planes come in do not matter."""
    clean, noisy = (torch.from_numpy(each) for each in images())
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0))).Q
    straight, absorbed = wiener(noisy, clean)
    turned, other = wiener(*((turn @ each.flatten(1)).reshape(SHAPE) for each in (noisy, clean)))
    torch.testing.assert_close((turn.T @ turned.flatten(1)).reshape(SHAPE), straight, atol=1e-3, rtol=0)
    assert absorbed.sum().item() == pytest.approx(other.sum().item(), rel=1e-3)


def test_turning_pays_where_planes_hold_the_same_scene():
    clean, noisy = images()
    clean[1:] = clean[:1] * np.float32([[[0.5]], [[-0.7]]])
    noisy = clean + np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    guide = threshold(torch.from_numpy(noisy))
    errors = [
        float((wiener(torch.from_numpy(noisy), guide, turn=turn)[0] - torch.from_numpy(clean)).square().mean())
        for turn in (True, False)
    ]
    assert errors[0] < 0.8 * errors[1]


def test_a_stride_that_does_not_divide_the_block_is_refused():
    with pytest.raises(ValueError, match="stride=3 does not divide 8"):
        threshold(torch.zeros(1, 9, 9), stride=3)
