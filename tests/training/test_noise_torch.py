import numpy as np
import pytest
import torch

from hsidenoise.noise.cases import NOISE_CASES, noise_case
from hsidenoise.training.noise_torch import NoisePlan, add_noise, draw_plan

SHAPE = (31, 40, 64)
PATCHES = 48


def planned(case, rng, patches=PATCHES):
    plans = [draw_plan(case, SHAPE[0], SHAPE[2], rng) for _ in range(patches)]
    return NoisePlan(*(torch.stack(parts) for parts in zip(*plans, strict=True)))


def traits(noisy, clean):
    """What tells the cases apart, of one patch: one number each."""
    zero, one = noisy == 0, noisy == 1
    dead = zero.all(axis=1)  # (bands, columns)
    rest = np.where(zero | one, np.nan, noisy - clean)
    column = np.nan_to_num(np.nanmean(np.where(dead[:, None], 0, rest), axis=1))
    spread = np.nanstd(np.where(dead[:, None], np.nan, rest), axis=(1, 2))
    return {
        "bands with dead columns": dead.any(axis=1).mean(),
        "dead columns of such a band": dead.sum() / max(1, dead.any(axis=1).sum()) / SHAPE[2],
        "salt": one.mean(),
        "pepper": (zero & ~dead[:, None]).mean(),
        "bands with impulses": (one.mean(axis=(1, 2)) > 0.02).mean(),
        "spread": np.median(spread),
        "spread between bands": np.std(spread),
        "column means": np.sqrt(np.mean(column**2)),
    }


@pytest.mark.parametrize("name", [*NOISE_CASES, "gaussian-0-75"])
def test_the_noise_is_that_of_the_case(name):
    """The mean of every trait over the patches is that of noise.py within five standard errors."""
    case, clean = noise_case(name), np.full(SHAPE, 0.45, dtype=np.float32)
    rng = np.random.default_rng(0)
    expected = [traits(case.add(clean, rng).noisy, clean) for _ in range(PATCHES)]
    batch = torch.from_numpy(clean).expand(PATCHES, *SHAPE)
    noisy = add_noise(batch, planned(case, rng), torch.Generator().manual_seed(0)).numpy()
    found = [traits(patch, clean) for patch in noisy]
    for trait in expected[0]:
        one, other = (np.array([each[trait] for each in sample]) for sample in (found, expected))
        error = np.sqrt((one.var() + other.var()) / PATCHES)
        assert abs(one.mean() - other.mean()) <= 5 * error + 1e-3, trait
    assert (clean == np.float32(0.45)).all()


def test_structured_kinds_hit_disjoint_thirds():
    plan = planned(noise_case("mixture"), np.random.default_rng(1))
    hit = torch.stack([(plan.offset != 0).any(-1), (plan.alive == 0).any(-1), plan.share > 0])
    assert (hit.sum(dim=2) == 10).all()  # a third of 31 bands, rounded down
    assert (hit.sum(dim=0) <= 1).all()


def test_noise_repeats_with_its_generator_and_leaves_the_patch_alone():
    clean = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    before, plan = clean.clone(), planned(noise_case("mixture"), np.random.default_rng(1), 4)
    one, other, third = (add_noise(clean, plan, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert torch.equal(one, other)
    assert not torch.equal(one, third)
    assert torch.equal(clean, before)
