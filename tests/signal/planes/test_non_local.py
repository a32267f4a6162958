"""Filter by patches that look alike."""

import pytest
import torch

from hsidenoise.signal.planes.non_local import non_local_bayes


def noise(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def test_a_pattern_that_repeats_itself_is_told_from_noise() -> None:
    """No block of a cosine transform does: the dots lie nowhere twice in the same way."""
    scene = torch.zeros(1, 80, 80)
    for row, column in torch.randint(2, 78, (250, 2), generator=torch.Generator().manual_seed(1)).tolist():
        scene[:, row - 1 : row + 2, column - 1 : column + 2] += torch.tensor([[0, 3, 0], [3, 6, 3], [0, 3, 0.0]])
    scene = scene.expand(4, 80, 80)
    guide = scene + 0.6 * noise(4, 80, 80, seed=2)
    error = (non_local_bayes(scene + noise(4, 80, 80), guide) - scene).std()
    assert error < 0.8 * (guide - scene).std()


@pytest.mark.parametrize("size", [(3, 40), (41, 4), (7, 11), (50, 64)])
def test_every_pixel_has_its_vote(size: tuple[int, int]) -> None:
    guide = noise(5, *size, seed=1) * 20
    found = non_local_bayes(guide + noise(5, *size), guide)
    assert found.isfinite().all()
    assert (found - guide).abs().amax() < 6


@pytest.mark.parametrize("size", [(1, 500), (2, 2), (5, 6)])
def test_too_few_patches_for_a_group_leave_the_guide(size: tuple[int, int]) -> None:
    guide = noise(2, *size)
    assert torch.equal(non_local_bayes(guide + 1, guide), guide)


@pytest.mark.parametrize("planes", [2, 12])
def test_a_scene_far_above_the_noise_comes_back(planes: int) -> None:
    """Single precision has no inverse there; 2 and 12 planes are the two forms of the matrix."""
    scene = noise(planes, 40, 40) * 1e5
    assert (non_local_bayes(scene, scene) - scene).abs().amax() < 1e-6 * scene.abs().amax()


@pytest.mark.parametrize("level", [0.0, -1e6, 1e6])
def test_no_patch_is_taken_from_outside_of_the_image(level: float) -> None:
    guide = level + noise(2, 30, 40)
    assert (non_local_bayes(guide, guide) - guide).abs().amax() < 3


def test_the_share_of_the_guide() -> None:
    guide = 5 * noise(3, 40, 30, seed=1)
    none, half, whole = (non_local_bayes(guide + noise(3, 40, 30), guide, share) for share in (0.0, 0.5, 1.0))
    torch.testing.assert_close(whole, guide)
    torch.testing.assert_close(half, (none + guide) / 2)
    assert (none - guide).abs().amax() > 0.1
