import os
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import scipy.io

from hsidenoise.data.formats.png import save_bands
from hsidenoise.data.io import Cube, write_arrays, write_cube
from hsidenoise.training import patches
from hsidenoise.training.patches import BandAugment, BandChoice, CubeStore, PatchPlace, reduced, scaled


@pytest.fixture
def files(tmp_path, rng):
    """Two cubes of 7 bands, 40x52 and 36x33 pixels."""
    shapes = {"a": (40, 52, 7), "b": (36, 33, 7)}
    for name, shape in shapes.items():
        write_arrays(tmp_path / f"{name}.mat", {"cube": rng.random(shape, dtype=np.float32)})
    return [tmp_path / f"{name}.mat" for name in shapes]


def test_reduced_is_the_mean_of_the_covered_area(rng):
    clean = rng.random((3, 8, 12), dtype=np.float32)
    blocks = clean.reshape(3, 4, 2, 6, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(reduced(clean, 0.5), blocks, atol=1e-6)
    assert reduced(clean[:, :7, :11], 0.5).shape == (3, 3, 5)


def test_reduced_does_not_alias():
    stripes = np.tile(np.float32([0, 1]), (2, 6, 8))
    np.testing.assert_allclose(reduced(stripes, 0.25), 0.5)


def test_scales_that_are_too_small_for_a_patch_are_left_out(files):
    store = CubeStore(files, patch_size=16)
    assert [level.shape for level in store.cubes[0]] == [(7, 40, 52), (7, 20, 26)]
    assert [level.shape for level in store.cubes[1]] == [(7, 36, 33), (7, 18, 16)]


def test_cut_is_the_crop_then_reversal_flip_and_turn(files):
    store = CubeStore(files, patch_size=10, bands=4)
    level = store.cubes[0][1]
    expected = level[2:6, 3:13, 5:15][::-1, :, ::-1]
    for turns in range(4):
        place = PatchPlace(1, 2, 3, 5, turns=turns, flip=True, reverse_bands=True)
        patch = store.cut(0, place)
        np.testing.assert_array_equal(patch, np.rot90(expected, turns, axes=(1, 2)))
        assert patch.flags["C_CONTIGUOUS"]
        assert not np.shares_memory(patch, level)


def test_patches_repeat_with_their_rng_and_cover_cubes_scales_bands_and_turns(files):
    store = CubeStore(files, patch_size=10, bands=4)
    assert np.array_equal(store.patch(np.random.default_rng(3)), store.patch(np.random.default_rng(3)))
    rng = np.random.default_rng(0)
    places = [store.place(0, rng) for _ in range(300)]
    assert {place.level for place in places} == {0, 1, 2}
    assert {place.first_band for place in places} == {0, 1, 2, 3}
    assert len({(place.turns, place.flip, place.reverse_bands) for place in places}) == 16
    full = [place for place in places if place.level == 0]
    # the last possible row and column are reached, and nothing beyond (cut would be short)
    assert max(place.top for place in full) == 30
    assert max(place.left for place in full) == 42
    assert all(store.cut(0, place).shape == (4, 10, 10) for place in places)


def test_without_augmentation_nothing_is_turned(files, rng):
    store = CubeStore(files, patch_size=10)
    for _ in range(30):
        place = store.place(1, rng, augment=False)
        assert (place.turns, place.flip, place.reverse_bands) == (0, False, False)


def test_a_patch_does_not_share_memory_with_the_store(files, rng):
    store = CubeStore(files, patch_size=10)
    before = [level.copy() for levels in store.cubes for level in levels]
    for _ in range(20):
        store.patch(rng)[:] = -1
    after = [level for levels in store.cubes for level in levels]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(("share", "cache", "dtype"), [(3, "memory", "f4"), (1.5, "memory", "u2"), (0.5, "mmap", "u2")])
def test_auto_takes_the_best_that_fits_in_half_of_the_memory(files, tmp_path, monkeypatch, share, cache, dtype):
    need = 2 * CubeStore(files, patch_size=10).cubes[0][0].nbytes  # two cubes; smaller scales come on top
    need = int(need * (1 + 1 / 4 + 1 / 16))
    monkeypatch.setattr(patches, "free_memory", lambda device: int(need * share))
    store = CubeStore(files, patch_size=10, cache_dir=tmp_path / "cache")
    assert store.cache == cache
    assert store.cubes[0][0].dtype == dtype


def test_memory_and_mmap_give_the_same_patches_up_to_quantisation(files, tmp_path):
    memory = CubeStore(files, patch_size=10, cache="memory")
    mapped = CubeStore(files, patch_size=10, cache="mmap", cache_dir=tmp_path / "cache")
    assert isinstance(mapped.cubes[0][0].base, np.memmap) or isinstance(mapped.cubes[0][0], np.memmap)
    for seed in range(20):
        a, b = (store.patch(np.random.default_rng(seed)) for store in (memory, mapped))
        np.testing.assert_allclose(a, b, atol=0.51 / 65535)


def test_mapped_files_are_used_again_until_the_cube_changes(files, tmp_path, rng):
    cache = tmp_path / "cache"
    CubeStore(files, patch_size=10, cache="mmap", cache_dir=cache)
    made = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    CubeStore(files, patch_size=10, cache="mmap", cache_dir=cache)
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == made
    assert not [path for path in made if path.suffix != ".levels"]
    write_arrays(files[0], {"cube": rng.random((44, 52, 7), dtype=np.float32)})
    again = CubeStore(files, patch_size=10, cache="mmap", cache_dir=cache)
    assert again.cubes[0][0].shape == (7, 44, 52)


@pytest.mark.parametrize("harm", ["missing", "empty", "header", "values", "longer", "other"])
def test_mapped_files_that_are_missing_or_torn_are_made_anew_with_every_scale(files, tmp_path, harm):
    cache = tmp_path / "cache"
    whole = CubeStore(files, patch_size=8, cache="mmap", cache_dir=cache)
    expected = [level.copy() for levels in whole.cubes for level in levels]
    for path in sorted(cache.iterdir()):
        content = path.read_bytes()
        path.unlink()  # not in place: the store above still looks at it
        if harm != "missing":
            shorter = {"empty": b"", "header": content[:100], "values": content[:-2], "longer": content + b"xx"}
            path.write_bytes(shorter.get(harm, bytes(len(content))))
        again = CubeStore(files, patch_size=8, cache="mmap", cache_dir=cache)
        found = [level for levels in again.cubes for level in levels]
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
        assert path.read_bytes() == content


def test_another_cube_under_the_same_header_is_read_anew(tmp_path, rng):
    write_cube(tmp_path / "a.hdr", Cube(rng.random((3, 20, 24), dtype=np.float32)))
    found = []
    for _ in range(2):
        store = CubeStore([tmp_path / "a.hdr"], patch_size=10, cache="mmap", cache_dir=tmp_path / "cache")
        found.append(np.array(store.cubes[0][0]))
        (tmp_path / "a.img").write_bytes(rng.random((3, 20, 24), dtype=np.float32).tobytes())
    assert not np.array_equal(*found)


@pytest.mark.parametrize("folder", [True, False])
def test_another_cube_of_the_same_name_size_and_time_is_read_anew(tmp_path, rng, folder):
    source = tmp_path / ("scene" if folder else "scene.mat")
    stores = []
    for _ in range(2):
        if folder:
            source.mkdir(exist_ok=True)
            save_bands(source, "s", rng.integers(0, 2**16, (12, 14, 3), dtype=np.uint16))
            written = sorted(source.iterdir())
        else:
            scipy.io.savemat(source, {"cube": rng.random((12, 14, 3), dtype=np.float32)})  # not compressed: one size
            written = [source]
        for path in written:
            os.utime(path, ns=(10**18, 10**18))
        stores.append(CubeStore([source], patch_size=8, cache="mmap", cache_dir=tmp_path / "cache"))
    assert not np.array_equal(stores[0].cubes[0][0], stores[1].cubes[0][0])


def test_a_disk_too_small_for_the_cache_is_told_in_one_line(files, tmp_path):
    """A limit on the size of files, in a process of its own: as a full disk does it, the write itself fails."""
    code = (
        "import resource, sys\n"
        "from hsidenoise.training.patches import CubeStore\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "CubeStore(sys.argv[2:], patch_size=10, cache='mmap', cache_dir=sys.argv[1])\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "cache"), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert re.search(
        r"^ValueError: .*a-\w+\.levels: the cache .* cannot be written .*--data.cache_dir\)$", done.stderr, re.M
    )
    assert not list((tmp_path / "cache").iterdir())


def test_crop_limits_where_patches_come_from(files):
    assert CubeStore(files, patch_size=10, crop=24).cubes[0][0].shape == (7, 24, 24)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bands": 8}, r"a\.mat: 7 bands, 8 are needed"),
        ({"patch_size": 41}, r"a\.mat: 40x52 pixels, too small for patches of 41"),
        ({"scales": [0.5, 2]}, "at most 1"),
        ({"scales": []}, "scales"),
        ({"patch_size": 0}, "at least 1 pixel"),
        ({"cache": "disk"}, "known: auto, memory, mmap"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_options(files, options, message):
    with pytest.raises(ValueError, match=message):
        CubeStore(files, **({"patch_size": 10} | options))


def test_no_cubes_and_unequal_bands(files, tmp_path, rng):
    with pytest.raises(ValueError, match="at least one"):
        CubeStore([])
    write_arrays(tmp_path / "c.mat", {"cube": rng.random((20, 22, 5), dtype=np.float32)})
    with pytest.raises(ValueError, match="differ in their number of bands"):
        CubeStore([*files, tmp_path / "c.mat"], patch_size=10)


def test_every_second_band(files):
    store = CubeStore(files, patch_size=10, bands=7)
    chosen = BandChoice(3, stride=2)
    level = store.cubes[0][0]
    place = PatchPlace(0, 1, 3, 5, reverse_bands=True, chosen=chosen)
    np.testing.assert_array_equal(store.cut(0, place), level[1:6:2, 3:13, 5:15][::-1])
    rng = np.random.default_rng(0)
    assert {store.place(0, rng, chosen=chosen).first_band for _ in range(50)} == {0, 1, 2}
    assert store.patch(rng, chosen=chosen).shape == (3, 10, 10)
    assert store.fewest_bands == 7


def test_a_small_cube_is_mirrored_up_to_a_patch(files, tmp_path):
    with pytest.raises(ValueError, match="too small for patches of 38"):
        CubeStore(files, patch_size=38)
    mirrored = CubeStore(files, patch_size=38, mirror=True)
    assert mirrored.cubes[1][0].shape == (7, 38, 38)  # of 36x33 pixels
    cube = CubeStore(files, patch_size=33).cubes[1][0]
    np.testing.assert_array_equal(mirrored.cubes[1][0][:, 36], mirrored.cubes[1][0][:, 35])
    np.testing.assert_array_equal(mirrored.cubes[1][0][:, :36, :33], cube)
    np.testing.assert_array_equal(mirrored.cubes[1][0][:, :36, 33:], cube[:, :, :27:-1])
    assert mirrored.cubes[0][0].shape == (7, 40, 52)  # large enough
    both = [CubeStore(files, patch_size=33, mirror=m, cache="mmap", cache_dir=tmp_path / "c") for m in (True, False)]
    assert len(list((tmp_path / "c").iterdir())) == 2 * len(both[0].cubes)


def test_every_stride_leaves_what_fits():
    augment = BandAugment(31, strides=[1, 2, 3])
    choices = {augment.choice(0, batch, available=31) for batch in range(60)}
    assert choices == {BandChoice(31, 1), BandChoice(16, 2), BandChoice(11, 3)}
    assert all(choice.span <= 31 for choice in choices)
    # of cubes with many bands the network takes as many as it can
    assert {augment.choice(0, batch, available=198).count for batch in range(60)} == {31}


def test_fewer_bands_are_drawn_down_to_the_fewest():
    augment = BandAugment(6, strides=[1, 2], fewest=3)
    counts = Counter(augment.choice(0, batch, available=9) for batch in range(400))
    assert {(choice.stride, choice.count) for choice in counts} == {(1, n) for n in (3, 4, 5, 6)} | {
        (2, n) for n in (3, 4, 5)
    }
    assert min(counts.values()) > 20
    assert BandAugment(6, strides=[4], fewest=3).choice(0, 0, available=6) == BandChoice(2, 4)  # no more fit


def test_a_choice_repeats_with_seed_and_batch():
    augment = BandAugment(31, strides=[1, 2, 3], fewest=8)
    one = [augment.choice(5, batch, 31) for batch in range(20)]
    assert one == [augment.choice(5, batch, 31) for batch in range(20)]
    assert one != [augment.choice(6, batch, 31) for batch in range(20)]


def test_off_is_all_bands():
    augment = BandAugment(31)
    assert not augment.active
    assert augment.choice(0, 3, available=31) == BandChoice(31, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": []}, "band_strides"),
        ({"strides": [1, 0]}, "band_strides"),
        ({"fewest": 0}, "fewest_bands 0"),
        ({"fewest": 7}, "from 1 to 6"),
    ],
)
def test_wrong_numbers(options, message):
    with pytest.raises(ValueError, match=message):
        BandAugment(6, **options)


def test_gain_is_one_number_for_a_patch_and_leaves_it_alone(rng):
    clean = rng.random((3, 4, 5), dtype=np.float32)
    before = clean.copy()
    gains = [(scaled(clean, (0.5, 1.2), rng) / clean) for _ in range(50)]
    assert all(np.ptp(gain) < 1e-5 for gain in gains)
    means = [gain.mean() for gain in gains]
    assert 0.5 <= min(means) < 0.6
    assert 1.1 < max(means) <= 1.2
    np.testing.assert_array_equal(clean, before)
    state = rng.bit_generator.state
    assert scaled(clean, (1.0, 1.0), rng) is clean
    assert rng.bit_generator.state == state  # runs without it draw what they always drew
