import struct
import zlib

import numpy as np
import pytest
import skimage.io

from hsidenoise.data.formats.png import find_bands, load_bands, save_bands


@pytest.fixture
def cube():
    return np.random.default_rng(0).integers(0, 2**16, (5, 6, 12)).astype(np.uint16)


def test_sixteen_bits_survive(tmp_path, cube):
    save_bands(tmp_path, "beads_ms", cube)
    (tmp_path / "beads_RGB.bmp").write_bytes(b"BM")
    (tmp_path / "Thumbs.db").write_bytes(b"")
    scene, files = find_bands(tmp_path)
    assert scene == "beads_ms"
    assert np.array_equal(load_bands(files), cube)


def test_nested_as_in_the_archive(tmp_path, cube):
    folder = tmp_path / "beads_ms" / "beads_ms"
    folder.mkdir(parents=True)
    save_bands(folder, "beads_ms", cube)
    assert np.array_equal(load_bands(find_bands(tmp_path / "beads_ms")[1]), cube)


def test_numbers_sort_as_numbers(tmp_path, cube):
    for band in range(12):
        skimage.io.imsave(tmp_path / f"s{band + 1}.png", cube[..., band], check_contrast=False)
    assert np.array_equal(load_bands(find_bands(tmp_path)[1]), cube)


def test_alpha_is_dropped_with_a_warning(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (5, 6, 2)).astype(np.uint8)
    for band in range(2):
        picture = np.dstack([grey[..., band]] * 3 + [np.full((5, 6), 255, np.uint8)])
        skimage.io.imsave(tmp_path / f"watercolors_ms_{band + 1:02d}.png", picture, check_contrast=False)
    with pytest.warns(UserWarning, match="alpha channel of 2 band images dropped"):
        assert np.array_equal(load_bands(find_bands(tmp_path)[1]), grey)


def test_colour_is_refused(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    skimage.io.imsave(tmp_path / "a_1.png", picture, check_contrast=False)
    with pytest.raises(ValueError, match="colour picture"):
        load_bands(find_bands(tmp_path)[1])


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_sixteen_bit_colour_is_refused(tmp_path):
    pixels = zlib.compress(b"".join(b"\0" + bytes(5 * 6) for _ in range(4)))
    header = struct.pack(">IIBBBBB", 5, 4, 16, 2, 0, 0, 0)
    (tmp_path / "a_1.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )
    with pytest.raises(ValueError, match="16-bit colour"):
        load_bands(find_bands(tmp_path)[1])


def test_bands_must_agree(tmp_path, cube):
    skimage.io.imsave(tmp_path / "a_1.png", cube[..., 0], check_contrast=False)
    skimage.io.imsave(tmp_path / "a_2.png", cube[:4, :, 1], check_contrast=False)
    with pytest.raises(ValueError, match="bands of a cube must agree"):
        load_bands(find_bands(tmp_path)[1])


def test_missing_band(tmp_path, cube):
    save_bands(tmp_path, "a", cube)
    (tmp_path / "a_07.png").unlink()
    with pytest.raises(ValueError, match="band 7 of scene 'a' is missing"):
        find_bands(tmp_path)
    (tmp_path / "a_07.png").touch()
    (tmp_path / "a_01.png").unlink()
    with pytest.raises(ValueError, match="band 1 of scene 'a' is missing"):
        find_bands(tmp_path)


def test_truncated_image(tmp_path, cube):
    save_bands(tmp_path, "a", cube)
    for length in (0, 10, 40, 60):
        (tmp_path / "a_07.png").write_bytes((tmp_path / "a_08.png").read_bytes()[:length])
        with pytest.raises(ValueError, match=r"cannot read .*a_07\.png"):
            load_bands(find_bands(tmp_path)[1])


def test_a_picture_that_contradicts_itself(tmp_path):
    size, rows = struct.pack(">II", 3, 2), zlib.compress(bytes(8))
    grey, palette = (size + bytes([8, colour, 0, 0, 0]) for colour in (0, 3))
    huge = struct.pack(">II", 2**31 - 1, 2**31 - 1) + grey[8:]
    for headers in ([palette], [grey, huge]):  # a palette that is not there; a second header
        chunks = [*(chunk(b"IHDR", header) for header in headers), chunk(b"IDAT", rows), chunk(b"IEND", b"")]
        (tmp_path / "a_1.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
        with pytest.raises(ValueError, match=r"cannot read .*a_1\.png"):
            load_bands(find_bands(tmp_path)[1])


def test_which_scene(tmp_path, cube):
    with pytest.raises(ValueError, match="folder without band images"):
        find_bands(tmp_path)
    for scene in ("a", "b"):
        (tmp_path / scene).mkdir()
        save_bands(tmp_path / scene, scene, cube)
    with pytest.raises(ValueError, match=r"several scenes \(a, b\); give the folder of one"):
        find_bands(tmp_path)
    save_bands(tmp_path / "a", "c", cube)
    with pytest.raises(ValueError, match=r"several scenes \(a, c\); choose one with --key"):
        find_bands(tmp_path / "a")
    assert find_bands(tmp_path / "a", "c")[1][0].name == "c_01.png"
    with pytest.raises(ValueError, match="no scene 'd' but a, c"):
        find_bands(tmp_path / "a", "d")


def test_a_picture_of_400_megapixels_is_refused_by_its_header(tmp_path):
    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0)
    rows = zlib.compressobj()
    pixels = b"".join(rows.compress(bytes(20001)) for _ in range(20000)) + rows.flush()
    for content, message in ((pixels, "more than a band may have"), (pixels[:2000], "truncated or damaged")):
        (tmp_path / "a_1.png").write_bytes(
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")
        )
        with pytest.raises(ValueError, match=message):
            load_bands(find_bands(tmp_path)[1])


def test_another_picture_by_the_name_of_a_png(tmp_path):
    skimage.io.imsave(tmp_path / "a.tif", np.eye(40, dtype=np.uint8), check_contrast=False)
    (tmp_path / "a.tif").rename(tmp_path / "a_1.png")
    with pytest.raises(ValueError, match="no PNG"):
        load_bands(find_bands(tmp_path)[1])
