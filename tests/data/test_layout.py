import itertools
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsidenoise.data.layout import Layout, Variable, find_layout, find_wavelengths


def number(name, *shape, dtype="f8", **more):
    return Variable(name, shape, np.dtype(dtype), **more)


def layout_of(*variables, values=None, **choice):
    nothing = {item.name: np.broadcast_to(np.float64(0), item.shape) for item in variables}
    values = nothing | {name: np.asarray(value) for name, value in (values or {}).items()}
    return find_layout(variables, lambda name: values[name], format="mat5", **choice)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((512, 512, 31), "hwb"),
        ((145, 145, 200), "hwb"),  # more bands than rows
        ((95, 95, 156), "hwb"),
        ((100, 100, 64), "hwb"),
        ((229, 394, 17), "hwb"),
        ((512, 217, 204), "hwb"),
        ((83, 86, 204), "hwb"),  # the shortest axis is not much shorter
        ((31, 512, 512), "bhw"),
        ((31, 1392, 1300), "bhw"),
        ((512, 31, 512), "hbw"),
        ((640, 31, 512), "hbw"),
        ((40, 40, 40), "hwb"),
        ((1, 1, 64, 48, 9), "hwb"),  # axes of one element are left out
        ((9, 1, 48, 64), "bhw"),
        ((40, 1, 31), "hwb"),  # one column or row of a scene
        ((1, 640, 224), "hwb"),
        ((40, 48, 1), "hwb"),
        ((1, 48, 48), "bhw"),
    ],
)
def test_spectral_axis(shape, axes):
    layout = layout_of(number("x", *shape))
    assert layout.axes == axes
    assert "axis" in layout.reason
    assert "'x' is the only 3-D array" in layout.reason


@pytest.mark.parametrize("shape", [(40, 40, 40), (145, 150, 200), (60, 90, 80), (1, 640, 224), (40, 39, 38)])
def test_a_guess_is_said(shape):
    values = {"x": np.random.default_rng(0).random(shape)}
    with pytest.warns(
        UserWarning, match=r"it is a guess that axis 3 is the spectrum \(the last.*give --axes, such as hwb"
    ):
        layout_of(number("x", *shape), values=values)
    for told in ({"axes": "bhw"}, {"size": None, "axes": "wbh"}):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            layout_of(number("x", *shape), **told)


def made(bands, height, width):
    """Four spectra in patches, with noise of 2 %."""
    x, (y, z) = np.linspace(0, 1, bands), np.mgrid[:height, :width]
    spectra = np.stack([0.3 + 0.2 * np.sin(5 * x + 1.7 * k) for k in range(4)])
    share = np.stack([np.sin(y / (5 + k)) * np.cos(z / (9 - k)) > 0 for k in range(4)], -1) + 0.1
    clean = (share / share.sum(-1, keepdims=True)) @ spectra
    return (clean + np.random.default_rng(1).normal(0, 0.02, clean.shape)).transpose(2, 0, 1)


@pytest.mark.parametrize("sizes", [(60, 90, 80), (200, 40, 30), (8, 30, 9), (162, 34, 78), (5, 64, 48)])
def test_values_tell_where_sizes_mislead(sizes):
    cube = made(*sizes)
    for order in itertools.permutations(range(3)):
        stored = cube.transpose(order)
        layout = layout_of(number("x", *stored.shape), values={"x": stored})
        assert layout.axes.index("b") == order.index(0), (stored.shape, layout.reason)
        assert np.array_equal(layout.to_bands_first(stored).shape[0], sizes[0])


def test_values_tell_on_a_real_cube(real_crop):
    """The sample of the repository in all orders: as a whole, and cropped to 20 to 48 pixels a side."""
    rng = np.random.default_rng(0)
    wrong, silent, count = 0, 0, 0
    for index in range(20):
        height, width = (rng.integers(20, size + 1) for size in real_crop.shape[1:]) if index else real_crop.shape[1:]
        top, left = (rng.integers(size) for size in (49 - height, 65 - width))
        cube = real_crop[:, top : top + height, left : left + width]
        for order in itertools.permutations(range(3)):
            stored = cube.transpose(order)
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                layout = layout_of(number("x", *stored.shape), values={"x": stored})
            off = layout.axes.index("b") != order.index(0)
            wrong, silent, count = wrong + off, silent + (off and not said), count + 1
            assert index or not off
    assert (count, silent) == (120, 0)
    assert wrong <= 6, wrong


def test_the_clean_cube_of_a_pair_speaks_for_both(real_crop):
    clean = real_crop[:, 4:34, 10:43]
    noisy = clean + np.random.default_rng(2).normal(0, 1.0, clean.shape)
    pair = number("input", *clean.shape), number("gt", *clean.shape)
    for key in ("input", "gt"):
        assert layout_of(*pair, key=key, values={"input": noisy, "gt": clean}).axes == "bhw"


def test_wavelengths_decide_the_axis():
    layout = layout_of(number("x", 30, 40, 20), number("wavelength", 40, 1))
    assert layout.axes == "hbw"
    assert "as long as 'wavelength'" in layout.reason
    assert layout_of(number("x", 40, 40, 20), number("wavelength", 40, 1)).axes == "hwb"  # fits two axes: tells nothing


def test_axes_of_another_program_are_in_its_own_order():
    for foreign in (True, False):
        assert layout_of(number("x", 31, 512, 480, foreign=foreign)).axes == "bhw"
        assert layout_of(number("x", 512, 480, 31, foreign=foreign)).axes == "hwb"
    assert layout_of(number("x", 1, 512, 480, foreign=True)).axes == "bhw"


def test_what_the_format_knows_of_the_axes_is_believed_and_overruled():
    known = replace(number("x", 20, 30, 40), axes="hbw")
    assert layout_of(known).axes == "hbw"
    assert "as the file says" in layout_of(known).reason
    assert layout_of(known, axes="bwh").axes == "bwh"


def test_a_variable_of_its_own_goes_before_one_in_a_struct():
    inside = replace(number("hsi.cube", 5, 6, 7), inside="hsi")
    assert layout_of(inside).key == "hsi.cube"
    assert layout_of(inside, number("other", 6, 7, 8)).key == "other"
    for key in ("hsi.cube", "hsi/cube", "/hsi/cube", "hsi(1).cube"):
        assert layout_of(inside, number("other", 6, 7, 8), key=key).key == "hsi.cube"


def test_axes_overrule():
    layout = layout_of(number("x", 5, 6, 7), axes="wbh")
    assert layout.axes == "wbh"
    assert "as asked for" in layout.reason
    for wrong in ("hw", "hhb", "xyz", "hwbb", ""):
        with pytest.raises(ValueError, match="does not name the axes"):
            layout_of(number("x", 5, 6, 7), axes=wrong)


def test_variable_by_known_name():
    assert layout_of(number("A", 95, 95, 3), number("SamSon", 95, 95, 156)).key == "SamSon"
    assert layout_of(number("rad", 1392, 1300, 31), number("rgb", 1392, 1300, 3), number("bands", 31, 1)).key == "rad"


def test_noisy_one_of_a_published_pair():
    layout = layout_of(number("gt", 64, 64, 31), number("input", 64, 64, 31), number("sigma", 1, 31))
    assert layout.key == "input"
    assert "'gt' beside it is the clean one" in layout.reason


def test_two_candidates_are_listed():
    with pytest.raises(ValueError, match=r"several variables .* a 6x7x5, b 6x7x4; choose one with --key"):
        layout_of(number("a", 6, 7, 5), number("b", 6, 7, 4))
    with pytest.raises(ValueError, match="several variables"):
        layout_of(number("rad", 6, 7, 5), number("gt", 6, 7, 5))


def test_key_overrules_and_wrong_key_lists_the_file():
    both = number("a", 6, 7, 5), number("b", 6, 7, 4)
    assert layout_of(*both, key="b").key == "b"
    with pytest.raises(ValueError, match="no variable 'c'; the file holds a 6x7x5, b 6x7x4"):
        layout_of(*both, key="c")


def test_refused_variables():
    with pytest.raises(ValueError, match="no 3-D variable; the file holds t 3x1"):
        layout_of(number("t", 3, 1))
    with pytest.raises(ValueError, match="'s': what is inside is not read; save the cube as a variable"):
        layout_of(Variable("s", (1, 1), None, "struct array, not read"))
    with pytest.raises(ValueError, match="the file holds nothing"):
        layout_of()
    with pytest.raises(ValueError, match=r"'s' is not a cube of numbers \(struct array"):
        layout_of(Variable("s", (1, 1), None, "struct array, not read"), key="s")
    with pytest.raises(ValueError, match="not a cube of numbers"):
        layout_of(number("m", 3, 4, 5, dtype="?", note="logical values"), key="m")
    with pytest.raises(ValueError, match="complex numbers"):
        layout_of(number("c", 3, 4, 5, dtype="c16"))
    with pytest.raises(ValueError, match="'e' is empty"):
        layout_of(number("e", 3, 0, 5))
    with pytest.raises(ValueError, match="three axes longer than one"):
        layout_of(number("v", 3, 1), key="v")
    with pytest.raises(ValueError, match="three axes longer than one"):
        layout_of(number("v", 3, 4, 5, 6), key="v")


def test_an_empty_array_beside_the_cube_does_not_matter():
    assert layout_of(number("e", 3, 0, 5), number("x", 8, 9, 5)).key == "x"


def test_unfolded_size_given_in_the_file_or_square():
    matrix = number("Y", 7, 30)
    layout = layout_of(matrix, size=(5, 6))
    assert (layout.axes, layout.size) == ("bp", (5, 6))
    layout = layout_of(matrix, number("lines", 1, 1), number("cols", 1, 1), values={"lines": [[6]], "cols": [[5]]})
    assert (layout.axes, layout.size) == ("bp", (6, 5))
    assert "from 'lines' and 'cols'" in layout.reason
    layout = layout_of(number("Y", 36, 7))
    assert (layout.axes, layout.size) == ("pb", (6, 6))
    assert "36 is a square number" in layout.reason


def test_unfolded_needs_a_size():
    with pytest.raises(ValueError, match="give --size HxW"):
        layout_of(number("Y", 7, 30))
    with pytest.raises(ValueError, match="--size 5x5 is 25 pixels; 'Y' is 7x30"):
        layout_of(number("Y", 7, 30), size=(5, 5))
    with pytest.raises(ValueError, match="--size HxW"):  # any matrix may be anything: its name must tell
        layout_of(number("abundances", 4, 36))
    assert layout_of(number("abundances", 4, 36), key="abundances").size == (6, 6)
    with pytest.raises(ValueError, match="does not fit"):
        layout_of(number("Y", 7, 30), size=(5, 6), axes="hwb")
    with pytest.raises(ValueError, match="--size is for bands x pixels"):
        layout_of(number("x", 7, 30, 4), key="x", size=(7, 30))


@given(
    sizes=st.tuples(*[st.integers(1, 4)] * 3),
    axes=st.permutations("hwb").map("".join),
    ones=st.lists(st.integers(0, 3), max_size=2),
)
def test_there_and_back_any_axes(sizes, axes, ones):
    shape = list(sizes)
    if 1 not in shape:
        for place in ones:
            shape.insert(place, 1)
    stored = np.arange(np.prod(shape)).reshape(shape)
    layout = Layout("mat5", "x", axes, tuple(shape), stored.dtype, None, "")
    cube = layout.to_bands_first(stored)
    assert cube.shape == tuple(sizes[axes.index(letter)] for letter in "bhw")
    assert np.array_equal(layout.from_bands_first(cube), stored)


def test_unfolded_pixels_run_down_the_columns():
    stored = np.arange(24).reshape(2, 12)
    layout = Layout("mat5", "Y", "bp", (2, 12), stored.dtype, (3, 4), "")
    cube = layout.to_bands_first(stored)
    assert all(cube[b, r, c] == stored[b, r + 3 * c] for b in range(2) for r in range(3) for c in range(4))
    assert np.array_equal(layout.from_bands_first(cube), stored)
    turned = Layout("mat5", "Y", "pb", (12, 2), stored.dtype, (3, 4), "")
    assert np.array_equal(turned.to_bands_first(stored.T), cube)
    assert np.array_equal(turned.from_bands_first(cube), stored.T)


def test_cube_of_other_sizes_is_refused():
    layout = Layout("mat5", "x", "hwb", (4, 5, 3), np.dtype("f4"), None, "")
    with pytest.raises(ValueError, match=r"3x5x4 .* cannot take the place of 'x' of 3x4x5"):
        layout.from_bands_first(np.zeros((3, 5, 4)))


def test_wavelengths():
    def find(name, values):
        values = np.asarray(values, dtype=float)
        return find_wavelengths([number(name, *values.shape)], lambda _: values, 3)

    assert find("bands", [[400, 410, 420]]).tolist() == [400, 410, 420]
    assert find("center_wavelengths", [[0.45], [0.55], [0.65]]).tolist() == pytest.approx([450, 550, 650])
    assert find("bands", [[1, 2, 3]]) is None  # a count, not wavelengths
    assert find("wavelength", [[400, np.nan, 420]]) is None
    assert find("wavelength", [[400, 410]]) is None
    assert find("weights", [[400, 410, 420]]) is None
