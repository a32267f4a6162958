"""Cubes of which some values hold no data: these are as if they were not there, and come back bit for bit."""

import numpy as np
import pytest
import scipy.io
import torch

from hsidenoise.classical.methods import find_method
from hsidenoise.inference.denoise import denoise, denoise_file

pytestmark = pytest.mark.filterwarnings("ignore:.*(left out and kept as it is|explain of it):RuntimeWarning")

BANDS, HEIGHT, WIDTH = 24, 44, 52
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
SMALL = "hcanet-bra"


def made_up():
    """Four spectra in patches."""
    wave = np.linspace(0, 1, BANDS)
    spectra = np.stack([0.3 + 0.2 * np.sin(5 * wave + 1.7 * k) for k in range(4)])
    share = np.stack([np.sin(ROWS / (5 + k)) * np.cos(COLUMNS / (9 - k)) > 0 for k in range(4)]) + 0.1
    return np.einsum("kb,khw->bhw", spectra, share / share.sum(0)).astype(np.float32)


CLEAN = made_up()
NOISY = CLEAN + np.random.default_rng(1).normal(0, 0.02, CLEAN.shape).astype(np.float32)
FRAME = (ROWS < 5) | (ROWS > 39) | (COLUMNS < 4) | (COLUMNS > 46)
ROTATED = (np.abs((COLUMNS - 26) * 0.9 + (ROWS - 22) * 0.4) > 18) | (
    np.abs((ROWS - 22) * 0.9 - (COLUMNS - 26) * 0.4) > 16
)
SCATTERED = np.random.default_rng(2).random(CLEAN.shape) < 0.02
LEFT = COLUMNS < 16
HALF = (np.arange(BANDS) == 9)[:, None, None] & (COLUMNS < 26)
DEAD = np.broadcast_to((np.arange(BANDS) // 3 == 4)[:, None, None], CLEAN.shape)
BY_BAND = (np.arange(BANDS)[:, None, None] > 15) & (COLUMNS < 2)
HOT = (ROWS == 20) & (COLUMNS == 25)
ONE = HOT & (np.arange(BANDS) == 5)[:, None, None]


def error(denoised, where):
    return float(np.sqrt(np.square(denoised.astype(np.float64) - CLEAN)[where].mean()))


def around(bad):
    """Within three pixels of it, and valid."""
    wide = bad.copy()
    for _ in range(3):
        padded = np.pad(wide, [(0, 0), (1, 1), (1, 1)])
        wide = padded[:, :-2, 1:-1] | padded[:, 2:, 1:-1] | padded[:, 1:-1, :-2] | padded[:, 1:-1, 2:] | wide
    return wide & ~bad


@pytest.fixture(scope="module")
def whole():
    return {name: denoise(NOISY, find_method(name) if name == "planes" else name) for name in ("planes", SMALL)}


@pytest.mark.parametrize("model", ["planes", SMALL])
@pytest.mark.parametrize(
    ("bad", "value", "dtype", "scale"),
    [
        (FRAME, np.nan, "f4", 1),
        (ROTATED, 0, "f4", 1),
        (ROTATED, 0, "i2", 1e4),
        (SCATTERED, np.nan, "f4", 1),
        (LEFT, -9999, "f4", 1),
        (LEFT, -32768, "i2", 1e4),
        (LEFT, 65535, "u2", 8e4),
        (LEFT, np.inf, "f8", 1e-9),
        (HALF, np.nan, "f4", 1),
        (DEAD, -9999, "f4", 1),
        (DEAD, -32768, "i2", 1e4),
        (DEAD, 0, "f4", 1),
        (DEAD | LEFT, np.nan, "f8", 1e9),
        (BY_BAND, -9999, "f4", 1),
        (HOT, 2, "f4", 1),
        (HOT, 50, "f4", 1),
        (HOT, 1e6, "f4", 1),
        (ONE, 1e6, "f4", 1),
    ],
)
def test_valid_values_come_out_as_if_the_others_were_valid(whole, model, bad, value, dtype, scale):
    turned = bad is ROTATED
    bad = np.broadcast_to(bad, NOISY.shape)
    stored = NOISY.astype(np.float64) * scale
    stored = np.where(bad, value, np.rint(stored) if dtype[0] in "iu" else stored).astype(dtype)
    before = stored.copy()
    denoised = denoise(stored, find_method(model) if model == "planes" else model)
    assert stored.tobytes() == before.tobytes()
    assert np.array_equal(denoised.astype(dtype)[bad], stored[bad], equal_nan=True)
    scaled = denoised.astype(np.float64) / scale
    assert error(scaled, ~bad) < 1.3 * error(whole[model], ~bad)
    if (near := around(bad)).any():
        # with half of the pixels gone there is less to tell the noise by
        assert error(scaled, near) < (1.55 if turned else 1.4) * error(whole[model], near)


@pytest.mark.parametrize(("gain", "band"), [(1e4, 9), (-1e6, 23)])
def test_a_band_in_another_unit_is_denoised_as_the_others(whole, gain, band):
    factor = np.ones((BANDS, 1, 1))
    factor[band] = gain
    with pytest.warns(RuntimeWarning, match="values far beyond those of the other bands; denoised at their scale"):
        denoised = denoise(NOISY * factor, SMALL) / factor
    for where in (np.arange(BANDS) == band, np.arange(BANDS) != band):
        assert error(denoised, where) < 1.15 * error(whole[SMALL], where)


def test_what_is_asked_for_is_left_out_without_a_word(recwarn):
    mask = np.ones((HEIGHT, WIDTH), dtype=bool)
    mask[:, 30:] = False
    marked = np.where(mask, NOISY, 0.3).astype(np.float32)
    marked[3] = 0.31
    cut = denoise(np.delete(NOISY, 3, axis=0)[:, :, :30], SMALL)
    denoised = denoise(marked, SMALL, mask=mask, bad_bands="3")
    assert np.array_equal(np.delete(denoised, 3, axis=0)[:, :, :30], cut)
    assert np.array_equal(denoised[:, :, 30:], marked[:, :, 30:])
    assert np.array_equal(denoised[3], marked[3])
    assert np.array_equal(denoise(marked, SMALL, nodata=0.3, bad_bands=[3]), denoised)
    assert not [each for each in recwarn if issubclass(each.category, RuntimeWarning)]


def test_every_method_gets_numbers_only_and_no_tile_without_data():
    """A network, a classical method, anybody's function."""
    noisy = np.tile(NOISY, (1, 2, 2))
    noisy[:, :60, 40:] = np.nan
    shapes = []

    def own(cube):
        assert np.isfinite(cube).all()
        shapes.append(cube.shape)
        return cube

    class Net(torch.nn.Module):
        bands = None

        def forward(self, cubes):
            return torch.from_numpy(np.stack([own(cube) for cube in cubes.numpy()]))

    for model in (own, Net()):
        assert np.allclose(denoise(noisy, model, tile=32, overlap=4), noisy, atol=1e-6, equal_nan=True)
    assert shapes[0] == noisy.shape
    assert set(shapes[1:]) == {(BANDS, 32, 32)}
    assert len(shapes[1:]) == 8  # of 12: four lie in what has no data


def test_payloads_and_whole_numbers_come_back_in_files(tmp_path):
    payload = np.array([0x7FC12345], dtype=np.uint32).view(np.float32)[0]
    for name, stored in (
        ("f4", np.where(LEFT, payload, NOISY)),
        ("f8", np.where(LEFT, np.nan, NOISY.astype(np.float64) + 1e9)),
        ("i4", np.where(LEFT, -(2**31), np.rint(NOISY * 1e6)).astype(np.int32)),
        ("u1", np.where(ROTATED, 0, np.rint(NOISY * 300)).astype(np.uint8)),
    ):
        bad = np.broadcast_to(ROTATED if name == "u1" else LEFT, stored.shape)
        scipy.io.savemat(tmp_path / "a.mat", {"cube": stored.transpose(1, 2, 0)})
        done = denoise_file(tmp_path / "a.mat", tmp_path / "b.mat", SMALL)
        assert np.array_equal(done.cube.mask, ~bad)
        assert done.warnings[0].startswith(done.cube.not_data[0])
        written = scipy.io.loadmat(tmp_path / "b.mat")["cube"].transpose(2, 0, 1)
        assert written.dtype == stored.dtype
        assert written[bad].tobytes() == stored[bad].tobytes()
        assert not np.array_equal(written[~bad], stored[~bad])


@pytest.mark.parametrize("left", [0, 3])
def test_too_few_pixels_are_one_line(left):
    noisy = np.full_like(NOISY, np.nan)
    noisy[:, 3, :left] = NOISY[:, 3, :left]
    with pytest.raises(
        ValueError, match=f"^only {left} of {HEIGHT * WIDTH} pixels hold data: nothing can be denoised$"
    ):
        denoise(noisy, SMALL)


@pytest.mark.parametrize(("bands", "size"), [(31, (1, 1)), (31, (1, 2)), (31, (3, 1)), (1, (1, 3))])
def test_fewer_than_four_pixels_come_back_as_they_are(tmp_path, size, bands):
    noisy = np.random.default_rng(0).integers(0, 9, (bands, *size)).astype(np.int16)
    with pytest.warns(RuntimeWarning) as said:
        denoised = denoise(noisy, SMALL, axes="bhw")
    text = f"{size[0]} x {size[1]} pixels are too few to tell noise from scene: the cube comes back as it is"
    assert [str(each.message) for each in said] == [text]
    assert np.array_equal(denoised, noisy)
    np.save(tmp_path / "a.npy", noisy)
    with pytest.warns(RuntimeWarning, match=text):
        done = denoise_file(tmp_path / "a.npy", tmp_path / "b.npy", SMALL, axes="bhw")
    assert np.array_equal(np.load(tmp_path / "b.npy"), noisy)
    assert done.warnings == (text,)
    assert done.record["replaced"] is None


@pytest.mark.parametrize("size", [(1, 52), (51, 1), (1, 4), (2, 2), (3, 5)])
@pytest.mark.parametrize("bands", [1, 3, 24])
def test_scan_lines_and_tiny_images_come_out_no_worse(size, bands):
    rng = np.random.default_rng(0)
    clean = (0.4 + 0.2 * np.sin(np.arange(bands) / 6)[:, None] * np.sin(np.arange(np.prod(size)) / 9)).reshape(
        -1, *size
    )
    noisy = clean + rng.normal(0, 0.1, clean.shape)
    for model in (SMALL, find_method("planes")):
        denoised = denoise(noisy, model, axes="bhw")
        assert denoised.shape == noisy.shape
        before, after = (np.square(each - clean).mean() for each in (noisy, denoised))
        assert after < (0.8 if np.prod(size) > 50 else 1.05) * before


def test_a_line_that_a_mask_leaves_is_denoised_as_a_line():
    noisy = np.full_like(NOISY, np.nan)
    noisy[:, 7] = NOISY[:, 7]
    alone = denoise(NOISY[:, 7:8], SMALL)
    assert np.array_equal(denoise(noisy, SMALL, axes="bhw")[:, 7:8], alone)
    assert np.square(alone - CLEAN[:, 7:8]).mean() < 0.5 * np.square(NOISY[:, 7] - CLEAN[:, 7]).mean()


@pytest.mark.parametrize("exponent", [-9, 9])
@pytest.mark.parametrize("shift", [0, 50])
def test_units_do_not_matter_to_planes_and_default_weights(exponent, shift):
    noisy = np.where(LEFT, np.nan, NOISY).astype(np.float64)[::2]
    noisy[:, 30, 30] = 9
    for model in (SMALL, find_method("planes")):
        plain = denoise(noisy, model)
        again = denoise(10.0**exponent * (noisy + shift), model) / 10.0**exponent - shift
        assert np.nanmax(np.abs(again - plain)) < 1e-4 * np.nanmax(plain)
