"""Figures of tables: what is drawn, that it fits, and that it repeats to the byte."""

import matplotlib.figure
import matplotlib.image
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from hsidenoise.benchmark import figures as table_figures
from hsidenoise.benchmark.figures import MOST_COLUMNS, EfficiencyPoint, comparison, efficiency, spectra

NM = np.linspace(400.0, 700.0, 6)


@pytest.fixture
def clean(rng):
    rows, columns = np.mgrid[:40, :52]
    scene = np.stack([0.5 + 0.4 * np.sin(rows / (4 + band) + columns / 9) for band in range(6)])
    return scene.astype(np.float32)


@pytest.fixture
def cubes(clean, rng):
    noisy = clean + rng.normal(0, 0.2, clean.shape).astype(np.float32)
    noisy[4] += rng.normal(0, 1, clean.shape[1:]).astype(np.float32)
    return {"noisy": noisy, "half": (noisy + clean) / 2, "good": (noisy + 9 * clean) / 10}


@pytest.fixture
def drawn(monkeypatch):
    """Figures as they were handed to the file."""
    kept = []

    def keep(figure, path):
        kept.append(figure)

    monkeypatch.setattr(table_figures, "save_figure", keep)
    return kept


def titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def draw(kind, path, clean, cubes):
    if kind == "comparison":
        comparison(path, clean, cubes, title="toys", case="blind", wavelengths=NM, pixel=(3, 4))
    elif kind == "spectra":
        spectra(path, clean, cubes, title="toys", case="blind", wavelengths=NM)
    else:
        efficiency(path, [EfficiencyPoint("a", 30.0, 1.0, 5.0, 10**6), EfficiencyPoint("b", 31.0, 2.0)], title="t")


@pytest.mark.parametrize("kind", ["comparison", "spectra", "efficiency"])
@pytest.mark.parametrize("ending", ["png", "pdf"])
def test_two_runs_give_the_same_bytes(tmp_path, clean, cubes, kind, ending):
    for name in ("a", "b"):
        draw(kind, tmp_path / f"{name}.{ending}", clean, cubes)
    first, second = ((tmp_path / f"{name}.{ending}").read_bytes() for name in ("a", "b"))
    assert first == second
    assert b"matplotlib" not in first[:400].lower() or ending == "pdf"
    assert b"CreationDate" not in first
    assert len(list(tmp_path.iterdir())) == 2
    if ending == "png":
        image = matplotlib.image.imread(tmp_path / "a.png")
        assert min(image.shape[:2]) > 400
        assert image[..., :3].std() > 0.03


def test_comparison_shows_every_cube_and_its_psnr(tmp_path, clean, cubes, drawn):
    comparison(tmp_path / "a.png", clean, cubes, title="toys", case="blind", wavelengths=NM, band=2)
    shown = titles(drawn[0])
    clipped = np.clip(cubes["half"], 0, 1).astype(np.float64)
    bands = -10 * np.log10(np.mean((clipped - clean) ** 2, axis=(1, 2)))
    assert f"half\n{bands.mean():.2f} dB" in shown
    assert f"{bands[2]:.2f} dB" in shown
    assert "clean" in shown
    assert [text.get_text() for text in drawn[0].texts] == ["toys, blind", "false colour", "520 nm", "error at 520 nm"]


def test_error_panels_share_a_scale_fitted_to_the_methods(tmp_path, clean, cubes, drawn):
    comparison(tmp_path / "a.png", clean, cubes, title="toys", case="blind", band=1)
    limits = {image.get_clim() for axes in drawn[0].axes for image in axes.images if image.get_cmap().name == "RdBu_r"}
    assert len(limits) == 1
    ((low, high),) = limits
    assert -low == high
    errors = {label: np.percentile(np.abs(cube[1] - clean[1]), 99) for label, cube in cubes.items()}
    assert errors["good"] <= high <= errors["half"]  # not that of the noisy one
    assert errors["half"] < errors["noisy"]


def test_the_noisiest_band_is_shown_unless_another_is_named(tmp_path, clean, cubes, drawn):
    comparison(tmp_path / "a.png", clean, cubes, title="toys", case="blind")
    comparison(tmp_path / "a.png", clean, cubes, title="toys", case="blind", band=0)
    assert [figure.texts[2].get_text() for figure in drawn] == ["band 4", "band 0"]


def test_inset_enlarges_the_named_square(tmp_path, clean, cubes, drawn):
    comparison(tmp_path / "a.png", clean, cubes, title="toys", case="blind", inset=(5, 7, 9))
    first = drawn[0].axes[0]
    (box,) = first.patches
    assert (box.get_x(), box.get_y(), box.get_width()) == (6.5, 4.5, 9)
    (small,) = first.child_axes
    np.testing.assert_array_equal(small.images[0].get_array(), first.images[0].get_array()[5:14, 7:16])
    left, bottom = small.get_position().x0, small.get_position().y0
    place = first.get_position()
    assert left > (place.x0 + place.x1) / 2  # the square is at the upper left, the enlargement at the lower right
    assert bottom < (place.y0 + place.y1) / 2


def test_the_inset_is_not_put_on_a_flat_place(tmp_path, drawn):
    clean = np.zeros((6, 40, 52), dtype=np.float32)
    clean[:, 22:32, 30:40] = 0.5
    comparison(tmp_path / "a.png", clean, {"noisy": clean + 0.1}, title="t", case="c")
    (box,) = drawn[0].axes[0].patches
    assert box.get_x() < 40
    assert box.get_x() + box.get_width() > 30
    assert box.get_y() < 32
    assert box.get_y() + box.get_height() > 22


def test_many_methods_wrap(tmp_path, clean, cubes, drawn):
    many = {**cubes, **{f"method {number}": cubes["good"] for number in range(9)}}
    comparison(tmp_path / "a.png", clean, many, title="toys", case="blind")
    labels = [title.split("\n")[0] for title in titles(drawn[0])]
    assert [label for label in labels if not label.endswith("dB")] == [*many, "clean"]
    wide, high = drawn[0].get_size_inches()
    boxes = [axes.get_position() for axes in drawn[0].axes]
    assert all(box.x0 >= 0 and box.x1 <= 1 and box.y0 >= -1e-9 and box.y1 <= 1 for box in boxes)
    lefts = {round(box.x0, 4) for box in boxes}
    assert len(lefts) == 7 <= MOST_COLUMNS  # 13 panels: seven and six
    assert wide / 7 > 1.7
    assert high > 10


@pytest.mark.parametrize("shape", [(1, 30, 9), (3, 6, 80), (2, 500, 12), (3, 450, 500)])
def test_panels_of_any_shape_keep_their_proportions(tmp_path, rng, drawn, shape):
    clean = rng.random(shape, dtype=np.float32)
    comparison(tmp_path / "a.png", clean, {"noisy": clean}, title="t", case="c")
    spectra(tmp_path / "b.png", clean, {"noisy": clean}, title="t", case="c")
    figure = drawn[0]
    box = figure.axes[0].get_position()
    wide, high = figure.get_size_inches()
    assert box.height * high / (box.width * wide) == pytest.approx(shape[1] / shape[2], rel=0.02)
    assert "exact" in titles(figure)[0]
    assert max(figure.axes[0].images[0].get_array().shape[:2]) <= 400


def test_spectra_of_the_chosen_pixels(tmp_path, clean, cubes, drawn):
    spectra(tmp_path / "a.png", clean, cubes, title="toys", case="blind", pixels=[(3, 5), (20, 40)], wavelengths=NM)
    panels = {axes.get_title(): axes for axes in drawn[0].axes}
    lines = {line.get_label(): line for line in panels["pixel 2: row 20, column 40"].lines}
    assert list(lines) == ["noisy", "half", "good", "clean"]
    np.testing.assert_allclose(lines["half"].get_ydata(), cubes["half"][:, 20, 40])
    np.testing.assert_array_equal(lines["half"].get_xdata(), NM)
    error = panels["pixel 1: estimate - clean"].lines[2]
    np.testing.assert_allclose(error.get_ydata(), cubes["good"][:, 3, 5] - clean[:, 3, 5], atol=1e-6)
    low, high = panels["pixel 1: estimate - clean"].get_ylim()
    assert low < error.get_ydata().min() < error.get_ydata().max() < high
    psnr = panels["PSNR of each band (dB)"].lines
    assert [line.get_label() for line in psnr] == ["noisy", "half", "good"]
    assert np.all(psnr[2].get_ydata() > psnr[0].get_ydata())


def test_spectra_choose_three_pixels_and_colours_differ(tmp_path, clean, cubes, drawn):
    many = {**cubes, **{f"method {number}": cubes["good"] for number in range(9)}}
    spectra(tmp_path / "a.png", clean, many, title="toys", case="blind")
    assert len(drawn[0].axes) == 8
    lines = drawn[0].axes[1].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(many) + 1
    (legend,) = drawn[0].legends
    FigureCanvasAgg(drawn[0]).draw()
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= drawn[0].bbox.x1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cubes": {}}, "no cube to compare"),
        ({"cubes": {"clean": np.zeros((6, 40, 52), np.float32)}}, "may be called 'clean'"),
        ({"cubes": {"noisy": np.zeros((6, 40, 51), np.float32)}}, r"'noisy' is \(6, 40, 51\)"),
        ({"band": 6}, "bands 0 to 5"),
        ({"pixel": (40, 0)}, "40 rows and 52 columns"),
        ({"inset": (35, 0, 9)}, "no square of 9 pixels at row 35"),
        ({"inset": (0, 0, 1)}, "no square of 1 pixels"),
        ({"path": "a.xyz"}, "not a picture format"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_comparisons(tmp_path, clean, cubes, change, message):
    path = tmp_path / change.pop("path", "a.png")
    cubes = change.pop("cubes", cubes)
    with pytest.raises(ValueError, match=message):
        comparison(path, clean, cubes, title="t", case="c", **change)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("pixels", "message"), [([], "not of 0"), ([(0, 0)] * 5, "not of 5"), ([(0, 52)], "no pixel")])
def test_bad_pixels(tmp_path, clean, cubes, pixels, message):
    with pytest.raises(ValueError, match=message):
        spectra(tmp_path / "a.png", clean, cubes, title="t", case="c", pixels=pixels)


def test_inputs_are_left_alone(tmp_path, clean, cubes):
    kept, copies = clean.copy(), {label: cube.copy() for label, cube in cubes.items()}
    for cube in (clean, *cubes.values()):
        cube.flags.writeable = False
    draw("comparison", tmp_path / "a.png", clean, cubes)
    draw("spectra", tmp_path / "b.png", clean, cubes)
    np.testing.assert_array_equal(clean, kept)
    for label, cube in cubes.items():
        np.testing.assert_array_equal(cube, copies[label])


# --- efficiency


def crowd(rng, count=12):
    return [
        EfficiencyPoint(f"method {number}", 36 + float(rng.normal()), float(np.exp(rng.normal())), parameters=10**6)
        for number in range(count)
    ]


def test_labels_do_not_overlap_and_stay_inside(tmp_path, rng, drawn):
    points = crowd(rng)
    efficiency(tmp_path / "a.png", points)
    figure = drawn[0]
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    (axes,) = figure.axes
    boxes = [Text.get_window_extent(text, renderer) for text in axes.texts]  # without its line
    assert {text.get_text() for text in axes.texts} == {point.label for point in points}
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number])
        assert axes.bbox.x0 <= box.x0 <= box.x1 <= axes.bbox.x1
        assert axes.bbox.y0 <= box.y0 <= box.y1 <= axes.bbox.y1


def test_a_panel_for_each_known_cost(tmp_path, drawn):
    points = [EfficiencyPoint("a", 30.0, 0.0, gflop=5.0), EfficiencyPoint("b", 31.0, 2.0, memory_mb=70.0)]
    efficiency(tmp_path / "a.png", points)
    panels = {axes.get_xlabel(): [text.get_text() for text in axes.texts] for axes in drawn[0].axes}
    assert panels == {"seconds per cube": ["b"], "GFLOP per cube": ["a"], "peak memory (MB)": ["b"]}
    assert {axes.get_xscale() for axes in drawn[0].axes} == {"log"}


def test_area_goes_with_parameters_and_the_front_with_the_best(tmp_path, drawn):
    points = [
        EfficiencyPoint("small", 33.0, 1.0, parameters=1_000_000),
        EfficiencyPoint("large", 35.0, 10.0, parameters=4_000_000),
        EfficiencyPoint("classical", 32.0, 100.0),
    ]
    efficiency(tmp_path / "a.png", points, title="quality")
    (axes,) = drawn[0].axes
    front, small, large, classical = axes.lines[:4]
    assert list(zip(*front.get_data(), strict=True)) == [(1.0, 33.0), (10.0, 35.0)]
    assert large.get_markersize() == pytest.approx(2 * small.get_markersize())
    assert (large.get_marker(), classical.get_marker()) == ("o", "D")
    assert [text.get_text() for text in drawn[0].texts][1] == "quality"
    assert "largest 4 M" in drawn[0].texts[0].get_text()


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], "no method has a cost"),
        ([EfficiencyPoint("a", 30.0, 0.0)], "no method has a cost"),
        ([EfficiencyPoint("a", float("inf"), 1.0)], "the PSNR of 'a' is inf"),
        ([EfficiencyPoint("a", 30.0, 1.0), EfficiencyPoint("a", 31.0, 1.0)], "'a' occurs twice"),
    ],
)
def test_bad_points(tmp_path, points, message):
    with pytest.raises(ValueError, match=message):
        efficiency(tmp_path / "a.png", points)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(self, *_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        efficiency(tmp_path / "a.png", [EfficiencyPoint("a", 30.0, 1.0)])
    assert not list(tmp_path.iterdir())
