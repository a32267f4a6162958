"""Figures and the before/after page: what is shown is chosen rightly, and the page is really drawn."""

import matplotlib.image
import numpy as np
import pytest

from hsidenoise.figures.cubes import before_after, false_colour, fit_stretch, noisiest_band, rgb_bands, telling_pixels


@pytest.fixture
def noisy(structured_cube, rng):
    noisy = structured_cube + rng.normal(0, 0.02, structured_cube.shape).astype(np.float32)
    noisy[11] += rng.normal(0, 0.5, noisy.shape[1:]).astype(np.float32)
    return noisy


@pytest.mark.parametrize(
    ("bands", "wavelengths", "expected"),
    [
        (31, np.linspace(400, 700, 31), (24, 15, 6)),
        (31, np.linspace(700, 400, 31), (6, 15, 24)),
        (5, np.linspace(900, 2500, 5), (3, 2, 1)),  # no visible band: by position
        (5, np.array([460, 550, np.nan, 640, 700.0]), (3, 2, 1)),
        (2, None, (1, 0, 0)),
        (1, None, (0, 0, 0)),
    ],
)
def test_bands_shown_as_colours(bands, wavelengths, expected):
    assert rgb_bands(bands, wavelengths) == expected


def test_no_band_is_no_picture():
    with pytest.raises(ValueError, match="at least one band"):
        rgb_bands(0)


def test_colours_go_to_their_channels():
    cube = np.zeros((31, 4, 6), dtype=np.float32)
    cube[24, 0], cube[15, 1], cube[6, 2] = 1, 1, 1
    image = false_colour(cube, wavelengths=np.linspace(400, 700, 31), stretch=fit_stretch(cube, (24, 15, 6), percent=0))
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image[:3, 0], np.eye(3))
    assert image.shape == (4, 6, 3)


def test_a_common_stretch_keeps_panels_comparable(structured_cube):
    stretch = fit_stretch(structured_cube, rgb_bands(31))
    bright, dark = (false_colour(structured_cube * share, stretch=stretch) for share in (1.0, 0.5))
    assert dark.mean() < 0.8 * bright.mean()
    alone = false_colour(structured_cube * np.float32(0.5))
    np.testing.assert_allclose(alone, bright, atol=1e-5)


def test_flat_and_negative_cubes_stay_in_range():
    for value in (-3.0, 0.0, 7.0):
        image = false_colour(np.full((3, 4, 5), value, dtype=np.float32))
        assert np.isfinite(image).all()
        assert image.min() >= 0
        assert image.max() <= 1


def test_noisiest_band(structured_cube, noisy):
    assert noisiest_band(noisy, structured_cube) == 11


def test_telling_pixels_are_of_different_materials(structured_cube):
    (row, column), *others = telling_pixels(structured_cube, 3)
    first = structured_cube[:, row, column]
    assert len(others) == 2
    for row, column in others:
        other = structured_cube[:, row, column]
        cosine = first @ other / np.linalg.norm(first) / np.linalg.norm(other)
        assert cosine < 0.95


def test_telling_pixels_of_an_all_zero_cube():
    assert len(telling_pixels(np.zeros((3, 4, 5), dtype=np.float32), 2)) == 2


@pytest.mark.parametrize("known", [True, False])
def test_page_is_drawn(tmp_path, structured_cube, noisy, known):
    path = tmp_path / "page.png"
    clean = structured_cube if known else None
    before_after(noisy, structured_cube, clean, wavelengths=np.linspace(400, 700, 31), path=path)
    image = matplotlib.image.imread(path)
    assert image.shape[0] > 600
    assert image.shape[1] > (1300 if known else 1000)
    assert image[..., :3].std() > 0.1
    assert list(tmp_path.iterdir()) == [path]


def test_page_follows_the_chosen_band(tmp_path, structured_cube, noisy):
    for band in (2, 11):
        before_after(noisy, structured_cube, path=tmp_path / f"{band}.png", band=band)
    before_after(noisy, structured_cube, path=tmp_path / "auto.png")
    pages = {name: matplotlib.image.imread(tmp_path / f"{name}.png") for name in ("2", "11", "auto")}
    np.testing.assert_array_equal(pages["11"], pages["auto"])
    assert not np.array_equal(pages["2"], pages["11"])


@pytest.mark.parametrize("shape", [(1, 30, 9), (2, 5, 60), (200, 7, 8)])
def test_page_of_any_shape(tmp_path, rng, shape):
    cube = rng.random(shape, dtype=np.float32)
    before_after(cube, cube, path=tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 5000


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("band", [None, 24])
def test_what_holds_no_data_is_left_out_of_a_page(tmp_path, structured_cube, noisy, known, band):
    """A band, one that would be red among them, a border, and single values; NaN, infinite, or by a mask."""
    mask = np.ones(noisy.shape, bool)
    mask[24] = mask[:, :3] = mask[2, 20, 20:30] = mask[5, 10, 10] = False
    clean, waves = structured_cube if known else None, np.linspace(400, 700, 31)
    lost = np.where(mask, noisy, np.float32(np.nan))
    lost[5, 10, 10] = np.inf
    before_after(lost, lost, clean, path=tmp_path / "nan.png", band=band, wavelengths=waves)
    marked = np.where(mask, noisy, np.float32(-9999))
    before_after(marked, marked, clean, path=tmp_path / "mask.png", band=band, wavelengths=waves, mask=mask)
    pages = [matplotlib.image.imread(tmp_path / f"{name}.png") for name in ("nan", "mask")]
    np.testing.assert_array_equal(*pages)
    holed = np.where(np.random.default_rng(0).random(noisy.shape) < 0.5, np.float32(np.nan), noisy)
    assert noisiest_band(holed, structured_cube) == 11
    assert len(telling_pixels(holed)) == 3
    with pytest.raises(ValueError, match="no value holds data"):
        before_after(marked, marked, path=tmp_path / "none.png", mask=np.zeros(noisy.shape, bool))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "page.xyz"}, "not a picture format"),
        ({"path": "page"}, "not a picture format"),
        ({"band": 31}, "bands 0 to 30"),
        ({"denoised": np.zeros((31, 40, 51), dtype=np.float32)}, r"\(31, 40, 51\)"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_requests(tmp_path, structured_cube, noisy, change, message):
    arguments = {"denoised": structured_cube, "path": "page.png", "band": None} | change
    with pytest.raises(ValueError, match=message):
        before_after(noisy, arguments["denoised"], path=tmp_path / arguments["path"], band=arguments["band"])
    assert not list(tmp_path.iterdir())


def test_inputs_are_left_alone(tmp_path, structured_cube, noisy):
    kept = noisy.copy()
    before_after(noisy, structured_cube, structured_cube, path=tmp_path / "page.png")
    np.testing.assert_array_equal(noisy, kept)
