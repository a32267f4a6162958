"""Noisy sets of others as they lie on a disk: published names, number types and file versions."""

import h5py
import numpy as np
import pytest
import scipy.io

from hsidenoise.data.formats.mat import write_mat
from hsidenoise.data.noisy_sets import PUBLISHED_CASES, find_noisy_set, pair_files, published_arrays, read_pair
from hsidenoise.noise.cases import NOISE_CASES

PUBLISHED = ["30", "50", "70", "blind", "noniid", "stripe", "deadline", "impulse", "mixture"]


@pytest.fixture
def arrays(rng):
    """A pair as published: double, (height 6, width 9, bands 13), noise that leaves [0, 1]."""
    clean = rng.random((6, 9, 13))
    return {"gt": clean, "input": clean + rng.normal(0, 0.3, clean.shape), "sigma": np.array([[70.0]])}


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


class TestFind:
    def test_the_nine_published_folders_in_the_order_of_the_papers(self, tmp_path):
        touch(tmp_path, *(f"icvl_512_{suffix}/{scene}.mat" for suffix in sorted(PUBLISHED) for scene in "ba"))
        touch(tmp_path, "noisy_set.json", "icvl_512_30/notes.txt", "icvl_512_30/._a.mat", ".cache/a.mat", "empty/x.txt")
        found = find_noisy_set(tmp_path)
        assert [case for case, _ in found] == list(NOISE_CASES)[:9]
        for (_, files), suffix in zip(found, PUBLISHED, strict=True):
            assert [str(path.relative_to(tmp_path)) for path in files] == [
                f"icvl_512_{suffix}/a.mat",
                f"icvl_512_{suffix}/b.mat",
            ]

    @pytest.mark.parametrize(
        ("name", "case"),
        [
            ("cave_256_noniid", "non-iid"),
            ("ICVL_512_Mixture", "mixture"),
            ("70", "gaussian-70"),
            ("washington_gaussian-25", "gaussian-25"),
            ("set_t3sc-correlated", "t3sc-correlated"),
            ("cave_non-iid", "non-iid"),
            ("case_2", "case_2"),
            ("rainy days", "rainy days"),
        ],
    )
    def test_the_ending_says_the_case_else_the_name_stands(self, tmp_path, monkeypatch, name, case):
        touch(tmp_path, f"{name}/a.mat")
        assert find_noisy_set(tmp_path) == [(case, (tmp_path / name / "a.mat",))]
        assert find_noisy_set(tmp_path / name) == [(case, (tmp_path / name / "a.mat",))]
        monkeypatch.chdir(tmp_path / name)
        assert [case for case, _ in find_noisy_set(".")] == [case]

    def test_unknown_cases_come_last_by_name(self, tmp_path):
        touch(tmp_path, "z/a.mat", "b/a.mat", "x_mixture/a.mat", "x_30/a.mat")
        assert [case for case, _ in find_noisy_set(tmp_path)] == ["gaussian-30", "mixture", "b", "z"]

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            (["notes.txt", "a/notes.txt"], "no .mat file"),
            (["a.mat", "cave_30/a.mat"], r"\.mat files and folders of them \(cave_30\)"),
            (["cave_30/a.mat", "icvl_30/a.mat"], "cave_30 and icvl_30 are both of the noise 'gaussian-30'"),
        ],
    )
    def test_what_is_no_set_is_refused(self, tmp_path, files, message):
        touch(tmp_path, *files)
        with pytest.raises(ValueError, match=message):
            find_noisy_set(tmp_path)

    def test_a_missing_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no such folder"):
            find_noisy_set(tmp_path / "nowhere")

    def test_files_of_a_folder(self, tmp_path):
        touch(tmp_path, "b.mat", "a.MAT", ".c.mat", "d.txt")
        assert [path.name for path in pair_files(tmp_path)] == ["a.MAT", "b.mat"]


class TestRead:
    def test_the_table_names_our_cases(self):
        assert list(PUBLISHED_CASES) == PUBLISHED
        assert list(PUBLISHED_CASES.values()) == list(NOISE_CASES)[:9]

    @pytest.mark.parametrize("dtype", ["f8", "f4"])
    @pytest.mark.parametrize("compressed", [True, False])
    def test_a_published_v5_file(self, tmp_path, arrays, dtype, compressed):
        stored = {name: value.astype(dtype) for name, value in arrays.items()}
        scipy.io.savemat(tmp_path / "gavyam.mat", stored, do_compression=compressed)
        pair = read_pair(tmp_path / "gavyam.mat")
        np.testing.assert_array_equal(pair.clean, arrays["gt"].transpose(2, 0, 1).astype(np.float32))
        np.testing.assert_array_equal(pair.noisy, arrays["input"].transpose(2, 0, 1).astype(np.float32))
        assert pair.noisy.min() < 0  # as it is: not clipped
        assert pair.noisy.max() > 1
        np.testing.assert_allclose(pair.sigma, np.full(13, 70 / 255), rtol=1e-6)
        assert (pair.scene, pair.wavelengths) == ("gavyam", None)

    @pytest.mark.parametrize("marked", [True, False])
    def test_a_v7_3_file_of_matlab_and_of_h5py(self, tmp_path, rng, marked):
        clean = rng.random((4, 19, 15))  # HDF5 shows (bands, columns, rows)
        with h5py.File(tmp_path / "a.mat", "w", userblock_size=512) as file:
            file["gt"], file["input"], file["sigma"] = clean, clean + 0.5, np.full((4, 1), 30.0)
            for name in file if marked else ():
                file[name].attrs["MATLAB_class"] = np.bytes_(b"double")
        pair = read_pair(tmp_path / "a.mat")
        seen = clean.transpose(0, 2, 1) if marked else clean  # what no MATLAB wrote is in the order of NumPy
        np.testing.assert_array_equal(pair.clean, seen.astype(np.float32))
        np.testing.assert_allclose(pair.noisy, pair.clean + 0.5, atol=1e-6)
        np.testing.assert_allclose(pair.sigma, np.full(4, 30 / 255), rtol=1e-6)

    def test_a_row_major_file_of_h5py(self, tmp_path, rng):
        clean = rng.random((20, 25, 4))  # (height, width, bands) as NumPy has it, which no MATLAB would write so
        with h5py.File(tmp_path / "a.mat", "w") as file:
            file["gt"], file["input"] = clean, clean + 0.5
        np.testing.assert_array_equal(read_pair(tmp_path / "a.mat").clean, clean.transpose(2, 0, 1).astype(np.float32))

    @pytest.mark.parametrize("shape", [(31, 8, 7), (4, 20, 16), (9, 9, 12), (5, 12, 12)])
    def test_the_last_axis_is_the_bands_whatever_the_sizes(self, tmp_path, rng, shape):
        clean = rng.random(shape)
        write_mat(tmp_path / "a.mat", {"gt": clean, "input": clean * 2})
        pair = read_pair(tmp_path / "a.mat")
        np.testing.assert_array_equal(pair.clean, clean.transpose(2, 0, 1).astype(np.float32))

    def test_sigma_of_each_band_and_wavelengths(self, tmp_path, arrays):
        levels = np.resize([10.0, 30, 50, 70], 13)
        write_mat(tmp_path / "a.mat", arrays | {"sigma": levels[None], "wavelength": np.linspace(400, 700, 13)[None]})
        pair = read_pair(tmp_path / "a.mat")
        np.testing.assert_allclose(pair.sigma, levels / 255, rtol=1e-6)
        np.testing.assert_allclose(pair.wavelengths, np.linspace(400, 700, 13))

    @pytest.mark.parametrize("sigma", [None, "unknown", np.zeros((0, 0))], ids=["absent", "text", "empty"])
    def test_a_file_that_does_not_say_sigma(self, tmp_path, arrays, sigma):
        del arrays["sigma"]
        scipy.io.savemat(tmp_path / "a.mat", arrays if sigma is None else arrays | {"sigma": sigma})
        assert read_pair(tmp_path / "a.mat").sigma is None

    def test_whole_numbers_are_not_scaled(self, tmp_path, rng):
        clean = rng.integers(0, 4096, (5, 8, 3)).astype(np.uint16)
        write_mat(tmp_path / "a.mat", {"gt": clean, "input": clean + np.uint16(7)})
        pair = read_pair(tmp_path / "a.mat")
        np.testing.assert_array_equal(pair.noisy - pair.clean, 7)
        assert pair.clean.max() == clean.max()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"gt": None}, r"a\.mat: no variable 'gt'.*holds input 6x9x13, sigma 1x1"),
            ({"input": None}, "no variable 'input'"),
            ({"input": np.ones((6, 8, 13))}, "'input' is 6x8x13 and 'gt' 6x9x13"),
            ({"input": np.eye(6, 9), "gt": np.eye(6, 9)}, "'gt' 6x9; both must be height x width x bands"),
            ({"input": np.full((6, 9, 13), np.nan)}, r"a\.mat: 'input' has no valid value"),
            ({"gt": np.full((6, 9, 13), np.inf)}, r"a\.mat: 'gt' has no valid value"),
            ({"gt": np.where(np.arange(702).reshape(6, 9, 13) == 8, np.nan, 0.5)}, r"a\.mat: 'gt'"),
            ({"sigma": np.ones((1, 12))}, "'sigma' is 1x12; .* each of the 13 bands"),
            ({"sigma": np.array([[np.nan]])}, "'sigma' is 1x1; one finite number"),
            ({"sigma": np.array([[-1.0]])}, "'sigma' is 1x1; one finite number"),
        ],
    )
    def test_what_is_wrong_is_said_in_one_line(self, tmp_path, arrays, change, message):
        stored = {name: value for name, value in (arrays | change).items() if value is not None}
        scipy.io.savemat(tmp_path / "a.mat", stored)
        with pytest.raises(ValueError, match=message) as caught:
            read_pair(tmp_path / "a.mat")
        assert "\n" not in str(caught.value)

    def test_no_file_and_no_pair(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file"):
            read_pair(tmp_path / "a.mat")
        with pytest.raises(IsADirectoryError, match="is a folder"):
            read_pair(tmp_path)
        (tmp_path / "cut.mat").write_bytes(b"MATLAB 5.0 MAT-file")
        with pytest.raises(ValueError, match="truncated"):
            read_pair(tmp_path / "cut.mat")


def test_written_variables_are_read_back(tmp_path, rng):
    clean = rng.random((5, 6, 8), dtype=np.float32)
    noisy = clean + rng.normal(0, 0.1, clean.shape).astype(np.float32)
    sigma = (np.array([10, 30, 50, 70, 10]) / 255).astype(np.float32)
    write_mat(tmp_path / "a.mat", published_arrays(noisy, clean, sigma, np.linspace(400, 700, 5)))
    pair = read_pair(tmp_path / "a.mat")
    for name, expected in {"noisy": noisy, "clean": clean, "sigma": sigma}.items():
        np.testing.assert_array_equal(getattr(pair, name), expected)
    np.testing.assert_array_equal(pair.wavelengths, np.linspace(400, 700, 5))
