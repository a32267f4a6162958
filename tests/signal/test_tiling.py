import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsidenoise.signal.tiling import Blend, Tiling, balanced_tile, plan, reflect_bands, tapers

axes = st.integers(1, 70).flatmap(
    lambda tile: st.tuples(st.integers(1, 200), st.just(tile), st.integers(0, max(0, tile - 1)))
)


@given(axes)
@settings(deadline=None)
def test_plan_covers_the_axis_with_full_tiles(axis):
    length, tile, overlap = axis
    starts = plan(length, tile, overlap)
    size = min(tile, length)
    assert starts[0] == 0
    assert starts[-1] + size == length
    steps = np.diff(starts)
    assert (steps > 0).all()
    assert (steps <= tile - overlap).all()
    # no tile too many: with one fewer, the overlap asked for could not be kept
    assert len(starts) == 1 or size + (len(starts) - 2) * (tile - overlap) < length


@given(axes)
@settings(deadline=None)
def test_tapers_sum_to_one(axis):
    weights = tapers(*axis)
    total = np.zeros(axis[0])
    for start, row in zip(plan(*axis), weights, strict=True):
        total[start : start + row.size] += row
    assert np.abs(total - 1).max() < 1e-12
    assert (weights > 0).all()


def test_tapers_equal_the_slow_definition():
    length, tile, overlap = 23, 10, 3
    starts = plan(length, tile, overlap)
    assert starts == (0, 6, 13)
    bumps = np.zeros((3, length))
    for i, start in enumerate(starts):
        for k in range(tile):
            weight = 1.0
            if i > 0 and k < (shared := starts[i - 1] + tile - start):
                weight *= np.sin(np.pi / 2 * (k + 0.5) / shared) ** 2
            if i < 2 and k >= tile - (shared := start + tile - starts[i + 1]):
                weight *= np.sin(np.pi / 2 * (tile - k - 0.5) / shared) ** 2
            bumps[i, start + k] = weight
    wanted = bumps / bumps.sum(axis=0)
    for i, (start, row) in enumerate(zip(starts, tapers(length, tile, overlap), strict=True)):
        assert row == pytest.approx(wanted[i, start : start + tile])


def test_taper_is_smooth_and_monotone_over_the_overlap():
    first, last = tapers(length=100, tile=60, overlap=20)
    assert (first[:40] == 1).all()
    assert (np.diff(first[40:]) < 0).all()
    assert np.allclose(first[::-1], last)
    assert np.abs(np.diff(first)).max() < 0.1


@pytest.mark.parametrize(
    ("length", "tile", "overlap"), [(0, 4, 1), (10, 0, 0), (10, 4, 4), (10, 4, -1), (3, 4, 9), (-5, 4, 0)]
)
def test_impossible_axes_are_refused(length, tile, overlap):
    for function in (plan, tapers, balanced_tile):
        with pytest.raises(ValueError, match="tiles of"):
            function(length, tile, overlap)
    with pytest.raises(ValueError, match="tiles of"):
        Tiling((3, 5, length), (3, 5, tile), (0, 0, overlap))


@given(st.integers(1, 4000), st.integers(40, 600), st.floats(0, 0.3))
@settings(deadline=None)
def test_balanced_tiles_waste_little(length, wanted, share):
    overlap = int(share * wanted)
    tile = balanced_tile(length, wanted, overlap)
    assert tile <= length
    assert tile <= 1.5 * wanted + 16
    if tile < length:
        starts = plan(length, tile, overlap)
        # what is computed beyond one pass and the overlaps asked for is the rounding to 16 per tile, no more
        assert len(starts) * tile <= length + (len(starts) - 1) * overlap + 16 * len(starts)


@pytest.mark.parametrize("bands", [1, 2, 3, 5, 30, 31, 40])
def test_reflection_along_bands_is_numpys(bands):
    cube = np.random.default_rng(0).random((bands, 4, 6))
    reflected = reflect_bands(cube, 31)
    wanted = np.pad(cube, ((0, max(0, 31 - bands)), (0, 0), (0, 0)), mode="reflect" if bands > 1 else "edge")
    assert np.array_equal(reflected, wanted)


@given(st.tuples(axes, axes, axes))
@settings(max_examples=25, deadline=None)
def test_blending_a_cube_with_itself_gives_the_cube(grid):
    shape, tile, overlap = (tuple(axis[i] for axis in grid) for i in range(3))
    shape = tuple(1 + size % 37 for size in shape)
    if any(size > 1 and 8 * (t - o) < size - t for size, t, o in zip(shape, tile, overlap, strict=True)):
        overlap = (0, 0, 0)  # thousands of tiles take long and show nothing new
    tiling = Tiling(shape, tile, overlap)
    if len(tiling) > 500:
        tiling = Tiling(shape, shape, (0, 0, 0))
    cube = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    blend = Blend(tiling)
    count = 0
    for piece in tiling:
        blend.add(piece, cube[piece.index])
        count += 1
    assert count == len(tiling)
    assert np.abs(blend.result() - cube).max() <= 2e-6 * np.abs(cube).max()


def test_tiles_of_a_grid():
    tiling = Tiling((40, 100, 70), (31, 64, 128), (10, 16, 16))
    tiles = list(tiling)
    assert tiling.counts == (2, 2, 1)
    assert [tile.shape for tile in tiles] == [(31, 64, 70)] * 4
    assert [tile.index[0].start for tile in tiles] == [0, 9, 0, 9]
    assert [tile.index[1].start for tile in tiles] == [0, 0, 36, 36]


def test_blend_refuses_wrong_shapes_and_missing_tiles():
    tiling = Tiling((3, 8, 10), (3, 8, 6), (0, 0, 2))
    first, last = tiling
    blend = Blend(tiling)
    with pytest.raises(ValueError, match="got values of shape"):
        blend.add(first, np.zeros((3, 8, 5), dtype=np.float32))
    blend.add(last, np.zeros((3, 8, 6), dtype=np.float32))
    with pytest.raises(ValueError, match="1 tiles are missing"):
        blend.result()
