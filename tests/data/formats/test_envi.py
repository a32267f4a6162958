import warnings
from dataclasses import replace

import numpy as np
import pytest
import rasterio
from command_line import call, refused
from rasterio.errors import NotGeoreferencedWarning
from spectral.io import envi as spectral_envi

from hsidenoise.data.formats.envi import FORMAT
from hsidenoise.data.io import Cube, convert, read_cube, write_cube
from hsidenoise.data.metadata import Metadata
from hsidenoise.data.sources import list_variables

pytestmark = pytest.mark.filterwarnings("ignore:Parameters with non-lowercase names")  # of spectral
AXES = {"bsq": "bhw", "bil": "hbw", "bip": "hwb"}
UTM32 = (
    'PROJCS["WGS_1984_UTM_Zone_32N",GEOGCS["GCS_WGS_1984",DATUM["D_WGS_1984",SPHEROID["WGS_1984",6378137.0,'
    '298.257223563]],PRIMEM["Greenwich",0.0],UNIT["Degree",0.0174532925199433]],PROJECTION["Transverse_Mercator"],'
    'PARAMETER["False_Easting",500000.0],PARAMETER["False_Northing",0.0],PARAMETER["Central_Meridian",9.0],'
    'PARAMETER["Scale_Factor",0.9996],PARAMETER["Latitude_Of_Origin",0.0],UNIT["Meter",1.0]]'
)
HEADER = """ENVI
description = {
  Flight line 7,
  reflectance x 10000}
samples = 7
lines   = 6
bands   = 5
header offset = {offset}
file type = ENVI Standard
data type = {code}
interleave = {interleave}
Sensor Type = Made up
byte order = {order}
; a comment
map info = {UTM, 1.000, 1.000, 500000.000, 5400000.000, 4.0, 3.0, 32, North, WGS-84, units=Meters}
coordinate system string = {%s}
wavelength units = Micrometers
wavelength = {
 0.40, 0.50, 0.60,
 0.70, 0.80}
fwhm = {0.010, 0.011, 0.012, 0.013, 0.014}
band names = {blue, green, red, red edge, near infrared}
bbl = {1, 1, 0, 1, 1}
data ignore value = -9999
reflectance scale factor = 10000.0
""".replace("%s", UTM32)


def values_of(code="i2", seed=0):
    rng = np.random.default_rng(seed)
    dtype = np.dtype(code)
    if dtype.kind == "f":
        return rng.normal(size=(5, 6, 7)).astype(dtype)
    return rng.integers(max(np.iinfo(dtype).min, -9000), min(np.iinfo(dtype).max, 9000), (5, 6, 7)).astype(dtype)


def write(folder, values, *, interleave="bsq", order=0, offset=0, code=2, data="a.img", header="a.hdr", text=HEADER):
    folder.mkdir(exist_ok=True)
    stored = values.transpose(["bhw".index(letter) for letter in AXES[interleave]])
    stored = stored.astype(values.dtype.newbyteorder("<>"[order]))
    (folder / data).write_bytes(b"\7" * offset + stored.tobytes())
    for name, value in {"offset": offset, "code": code, "interleave": interleave, "order": order}.items():
        text = text.replace(f"{{{name}}}", str(value))
    (folder / header).write_text(text)
    return folder / header


def by_rasterio(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as file:
            assert file.driver == "ENVI"
            return file.read(), file.crs, file.transform, file.nodata, file.descriptions


@pytest.mark.parametrize(
    ("code", "number"),
    [("u1", 1), ("i2", 2), ("i4", 3), ("f4", 4), ("f8", 5), ("u2", 12), ("u4", 13), ("i8", 14), ("u8", 15)],
)
@pytest.mark.parametrize(("interleave", "order", "offset"), [("bsq", 0, 0), ("bil", 1, 32), ("bip", 0, 7)])
def test_a_copy_is_the_source_with_other_numbers(tmp_path, code, number, interleave, order, offset):
    values = values_of(code)
    header = write(tmp_path, values, interleave=interleave, order=order, offset=offset, code=number)
    for source in (header, tmp_path / "a.img"):
        cube = read_cube(source, exact=True)
        assert np.array_equal(cube.values, values)
        assert cube.layout.axes == AXES[interleave]
    write_cube(tmp_path / "b.img", Cube(cube.values[:, ::-1].copy(), cube.wavelengths, cube.layout, cube.path))
    assert (tmp_path / "b.hdr").read_bytes() == header.read_bytes()
    assert (tmp_path / "b.img").read_bytes()[:offset] == b"\7" * offset
    image = spectral_envi.open(str(tmp_path / "b.hdr"), str(tmp_path / "b.img"))
    assert np.array_equal(image.open_memmap(interleave="bsq"), values[:, ::-1])
    assert image.bands.centers == [0.4, 0.5, 0.6, 0.7, 0.8]
    found, crs, transform, nodata, _ = by_rasterio(tmp_path / "b.img")
    assert np.array_equal(found, values[:, ::-1])
    assert (crs.to_epsg(), tuple(transform)[:6]) == (32632, (4, 0, 500000, 0, -3, 5400000))
    if code not in ("u1", "u2", "u4", "u8"):
        assert nodata == -9999


def test_what_the_header_says_arrives(tmp_path):
    cube = read_cube(write(tmp_path, values_of()))
    assert cube.wavelengths.tolist() == [400, 500, 600, 700, 800]
    about = cube.metadata
    assert about.fwhm.tolist() == [10, 11, 12, 13, 14]
    assert about.band_names == ("blue", "green", "red", "red edge", "near infrared")
    assert about.good_bands.tolist() == [True, True, False, True, True]
    assert about.nodata == -9999
    assert about.crs == UTM32
    assert about.transform == (4, 0, 500000, 0, -3, 5400000)
    assert about.attributes["sensor type"] == "Made up"
    assert "Flight line 7" in about.attributes["description"]


@pytest.mark.parametrize("ending", ["bil", "bip", "bsq"])
def test_the_ending_says_the_interleave(tmp_path, ending):
    values = values_of()
    write(tmp_path, values)
    convert(tmp_path / "a.hdr", tmp_path / f"b.{ending}")
    text = (tmp_path / "a.hdr").read_text().replace("interleave = bsq", f"interleave = {ending}")
    assert (tmp_path / "b.hdr").read_text() == text
    assert np.array_equal(spectral_envi.open(str(tmp_path / "b.hdr")).open_memmap(interleave="bsq"), values)


def test_names_that_a_pair_can_have(tmp_path):
    values = values_of()
    for data, header in [("a", "a.hdr"), ("a.img", "a.img.hdr"), ("a.DAT", "a.hdr"), ("f97_rfl", "f97_rfl.hdr")]:
        folder = tmp_path / data
        write(folder, values, data=data, header=header)
        for name in (data, header):
            assert np.array_equal(read_cube(folder / name, exact=True).values, values)
        convert(folder / header, folder / "b.hdr")
        assert np.array_equal(by_rasterio(folder / f"b{(folder / data).suffix}")[0], values)
    assert not FORMAT.recognises(tmp_path / "a" / "none")


def test_headers_are_spelt_in_many_ways(tmp_path):
    values = np.arange(60, dtype="<f4").reshape(3, 4, 5)
    values.tofile(tmp_path / "a.img")
    plain = "ENVI\nsamples = 5\nlines = 4\nbands = 3\ndata type = 4\ninterleave = bsq\nwavelength = {400,500,600}\n"
    for text in (
        plain.upper().replace("BSQ", "Bsq"),
        plain.replace(" = ", "\t=\t").replace("\n", "\r\n"),
        plain.replace("\n", "\r"),
        plain.replace(" = ", "=").replace(",", ",\n  ").replace("600", "600 ,\n"),
        plain.replace("= 5\n", "= 5 ; pixels of a line\n; lines = 9\n")
        .replace("= 3", "= 3.0")
        .replace("bsq", "bsq ; bands"),
    ):
        (tmp_path / "a.hdr").write_text(text, newline="")
        cube = read_cube(tmp_path / "a.img")
        assert np.array_equal(cube.values, values), text
        assert cube.wavelengths.tolist() == [400, 500, 600], text


def test_a_part_is_read_without_the_rest(tmp_path):
    for interleave, axes in AXES.items():
        header = write(tmp_path / interleave, values_of(), interleave=interleave)
        whole = FORMAT.load_variable(header, "a")
        part = tuple({"b": slice(1, 3), "h": slice(2, 6), "w": slice(0, 5)}[letter] for letter in axes)
        assert np.array_equal(FORMAT.load_variable(header, "a", part), whole[part])


def test_a_new_pair(tmp_path):
    values = values_of("f4")
    about = Metadata(
        fwhm=np.full(5, 6.5), band_names=("a", "b, c", "d", "e", "f"), good_bands=np.array([1, 0, 1, 1, 1], bool),
        nodata=-1e30, crs=UTM32, transform=(2.0, 0.0, 10.0, 0.0, -3.0, 20.0), attributes={"sensor": "X"},
    )  # fmt: skip
    write_cube(tmp_path / "b.hdr", Cube(values, np.linspace(400.0, 800, 5), None, None, about))
    found, crs, transform, nodata, names = by_rasterio(tmp_path / "b.img")
    assert np.array_equal(found, values)
    assert (crs.to_epsg(), tuple(transform)[:6], nodata) == (32632, about.transform, -1e30)
    assert [name.split(" (")[0] for name in names] == ["a", "b  c", "d", "e", "f"]
    header = spectral_envi.read_envi_header(str(tmp_path / "b.hdr"))
    assert [float(each) for each in header["wavelength"]] == [400, 500, 600, 700, 800]
    assert (header["bbl"], header["sensor"]) == (["1", "0", "1", "1", "1"], "X")
    again = read_cube(tmp_path / "b.img").metadata
    assert again.fwhm.tolist() == [6.5] * 5
    assert (again.nodata, again.transform, again.crs) == (-1e30, about.transform, UTM32)


def test_rotated_map_info_is_what_rasterio_says(tmp_path):
    text = HEADER.replace("units=Meters}", "units=Meters, rotation=30}", 1)
    header = write(tmp_path, values_of(), text=text)
    assert read_cube(header).metadata.transform == pytest.approx(tuple(by_rasterio(tmp_path / "a.img")[2])[:6])
    write_cube(tmp_path / "n.dat", Cube(values_of("f4"), None, None, None, read_cube(header).metadata))
    assert tuple(by_rasterio(tmp_path / "n.dat")[2]) == pytest.approx(tuple(by_rasterio(tmp_path / "a.img")[2]))


BAD = {
    "size": (lambda text: text.replace("lines   = 6", "lines = 9"), "has 420 bytes, its header says 630"),
    "code": (lambda text: text.replace("data type = 2", "data type = 8"), "data type 8 is not one of ENVI's"),
    "no code": (lambda text: text.replace("data type = 2", ""), "has no 'data type'"),
    "interleave": (lambda text: text.replace("= bsq", "= xyz"), "'interleave = xyz' in the ENVI header"),
    "no interleave": (lambda text: text.replace("interleave = bsq", ""), "no 'interleave'"),
    "words": (lambda text: text.replace("bands   = 5", "bands = five"), "'bands = five' is not a whole number"),
    "zero": (lambda text: text.replace("bands   = 5", "bands = 0"), "samples, lines or bands is 0"),
    "order": (lambda text: text.replace("byte order = 0", "byte order = 3"), "byte order 3"),
    "no header": (lambda text: text.replace("ENVI", "IVNE", 1), "begins with the line ENVI"),
    "library": (lambda text: text.replace("ENVI Standard", "ENVI Spectral Library"), "library of spectra"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_header_that_lies_is_one_line(tmp_path, fault):
    change, message = BAD[fault]
    header = write(tmp_path, values_of())
    header.write_text(change(header.read_text()))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for name in ("a.hdr", "a.img"):
        said = call("denoise", name, "-o", "b.img", cwd=tmp_path, code=2)
        assert refused(said)
        assert message in said
    assert before == {file.name: file.read_bytes() for file in tmp_path.iterdir()}


def test_a_pair_of_which_one_is_missing_or_short(tmp_path):
    header = write(tmp_path, values_of())
    (tmp_path / "a.img").write_bytes((tmp_path / "a.img").read_bytes()[:-1])
    with pytest.raises(ValueError, match="truncated, or the header lies"):
        list_variables(header)
    (tmp_path / "a.img").unlink()
    with pytest.raises(ValueError, match="its file of numbers is missing"):
        read_cube(header)
    write(tmp_path, values_of())
    header.unlink()
    with pytest.raises(ValueError, match=r"its ENVI header is missing; put it beside, as a\.hdr"):
        read_cube(tmp_path / "a.img")


def test_a_pointer_in_place_of_the_numbers_is_said(tmp_path):
    header = write(tmp_path, values_of())
    (tmp_path / "a.img").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ValueError, match=r"a.img: it is a Git LFS pointer, not the file; fetch that: git lfs pull"):
        read_cube(header)


def test_lists_of_another_length_are_left_aside_and_said(tmp_path):
    header = write(tmp_path, values_of(), text=HEADER.replace("bbl = {1, 1, 0, 1, 1}", "bbl = {1, 1, 0}"))
    with pytest.warns(UserWarning, match="'bbl' has 3 numbers for 5 bands"):
        assert read_cube(header).metadata.good_bands is None


def test_a_source_pair_is_never_overwritten(tmp_path):
    header = write(tmp_path, values_of())
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for source in ("a.hdr", "a.img"):
        for target in ("a.hdr", "a.img", "a.dat", "a.bil"):
            assert "would be lost" in call("denoise", source, "-o", target, cwd=tmp_path, code=2)
            assert "would be lost" in call("convert", source, target, cwd=tmp_path, code=2)
            with pytest.raises(ValueError, match="would be lost"):
                write_cube(tmp_path / target, read_cube(header))
    assert before == {file.name: file.read_bytes() for file in tmp_path.iterdir()}


def test_a_file_that_nobody_named_is_not_replaced(tmp_path):
    write(tmp_path, values_of())
    cube = replace(read_cube(tmp_path / "a.img"), path=None)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "b.img").write_bytes(b"precious")
    for name, other in (("a.bsq", "a.hdr"), ("b.hdr", "b.img")):
        with pytest.raises(FileExistsError, match=rf"{other} would be written too, and is there already"):
            write_cube(tmp_path / name, cube)
    assert {path: path.read_bytes() for path in tmp_path.glob("a.*")} == before
    write_cube(tmp_path / "b.img", cube)  # named
    write_cube(tmp_path / "b.hdr", cube)  # a pair that is named by one of the two


def test_both_files_of_a_pair_or_none(tmp_path):
    cube = read_cube(write(tmp_path, values_of()))
    (tmp_path / "b.img").write_bytes(b"before")
    (tmp_path / "b.hdr").mkdir()
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        write_cube(tmp_path / "b.img", cube)
    assert (tmp_path / "b.img").read_bytes() == b"before"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.hdr", "a.img", "b.hdr", "b.img"]
