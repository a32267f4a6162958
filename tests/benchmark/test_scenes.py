import pytest

from hsidenoise.benchmark.config import Data
from hsidenoise.benchmark.plan import find_table_scenes
from hsidenoise.data.datasets import read_split

TEST = read_split("cave_hsir_test.txt")


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(data, cases=("blind",)):
    return [scene.name for scene in find_table_scenes(data, cases)]


def test_a_folder_without_parts_is_taken_whole(tmp_path):
    touch(tmp_path, "oak.mat", "fir/fir_01.png", "fir/fir_02.png", "._oak.mat", "notes.txt", "preview/only.png")
    found = find_table_scenes(Data(root=str(tmp_path)), ["blind", "mixture"])
    assert [scene.name for scene in found] == ["fir", "oak"]
    assert found[1].files == {"blind": tmp_path / "oak.mat", "mixture": tmp_path / "oak.mat"}


def test_a_folder_with_parts(tmp_path):
    touch(tmp_path, "train/a.mat", "val/b.mat", "test/d.mat", "test/c.mat", "e.mat")
    root = str(tmp_path)
    parts = {part: names(Data(root=root, part=part)) for part in ("train", "validation", "test", "all")}
    assert parts == {"train": ["a"], "validation": ["b"], "test": ["c", "d"], "all": ["a", "b", "c", "d"]}


def test_a_scene_that_is_there_twice(tmp_path):
    touch(tmp_path, "oak.mat", "oak/1.png", "oak/2.png")
    with pytest.raises(ValueError, match="is there twice; keep one"):
        find_table_scenes(Data(root=str(tmp_path)), ["blind"])


def test_chosen_scenes_in_the_order_chosen(tmp_path):
    touch(tmp_path, "oak.mat", "Fir_ms.mat", "ash.mat")
    assert names(Data(root=str(tmp_path), scenes=("oak", "fir"))) == ["oak", "Fir_ms"]
    with pytest.raises(ValueError, match="there is no scene 'elm'; there are fir, ash, oak"):
        names(Data(root=str(tmp_path), scenes=("elm",)))


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--data\.root names the folder"):
        names(Data(root=str(tmp_path / "no")))
    with pytest.raises(ValueError, match="no cube found in it"):
        names(Data(root=str(tmp_path)))
    with pytest.raises(ValueError, match="no noise case is named"):
        names(Data(root=str(tmp_path)), None)
    with pytest.raises(ValueError, match="no published splits"):
        names(Data(root=str(tmp_path), split="hsir"))
    with pytest.raises(ValueError, match="has no split 'x'; known: hsir"):
        names(Data(root=str(tmp_path), dataset="cave", split="x"))


class TestSplit:
    def test_cave_in_the_order_of_the_list_as_png_folders_or_mat(self, tmp_path):
        for number, name in enumerate(TEST):
            bare = name.removesuffix("_ms")
            kinds = [f"{name}/{name}/{name}_{{}}.png", f"deep/{name}.mat", f"{bare}.mat"]
            touch(tmp_path, *(kinds[number % 3].format(band) for band in (1, 2)))
        found = names(Data(dataset="cave", root=str(tmp_path)))
        assert [name.removesuffix("_ms") for name in found] == [name.removesuffix("_ms") for name in TEST]

    def test_parts(self, tmp_path):
        train = read_split("cave_hsir_train.txt")
        touch(tmp_path, *(f"{name}.mat" for name in (*train, *TEST)))
        parts = {part: names(Data(dataset="cave", root=str(tmp_path), part=part)) for part in ("train", "all")}
        held = names(Data(dataset="cave", root=str(tmp_path), part="validation"))
        assert (len(parts["train"]), len(held), len(parts["all"])) == (18, 2, 32)
        assert not set(parts["train"]) & set(held)

    def test_missing_scenes(self, tmp_path):
        touch(tmp_path, f"{TEST[3]}.mat", f"{TEST[1]}.mat")
        data = {"dataset": "cave", "root": str(tmp_path)}
        with pytest.raises(ValueError, match=r"10 scene\(s\) .* and 7 more\).*`missing: skip`"):
            names(Data(**data))
        with pytest.warns(UserWarning, match=r"10 scene\(s\).*left out"):
            assert names(Data(**data, missing="skip")) == [TEST[1], TEST[3]]
        assert names(Data(**data, scenes=(TEST[3],))) == [TEST[3]]  # the others need not be there

    @pytest.mark.parametrize("missing", ["error", "skip"])
    def test_none_of_them(self, tmp_path, missing):
        touch(tmp_path, "oak.mat")
        with pytest.raises(ValueError, match=r"12 scene\(s\).*and no other is there; --data\.root"):
            names(Data(dataset="cave", root=str(tmp_path), missing=missing))

    def test_icvl_has_a_list_for_gaussian_and_one_for_complex_noise(self, tmp_path):
        lists = {kind: read_split(f"icvl_qrnn3d_test_{kind}.txt") for kind in ("gaussian", "complex")}
        touch(tmp_path, *lists["gaussian"], *lists["complex"])
        data = Data(dataset="icvl", split="qrnn3d", root=str(tmp_path))
        by_case = {case: [] for case in ("gaussian-30", "blind", "gaussian-5-9", "non-iid", "mixture", "t3sc-stripes")}
        for scene in find_table_scenes(data, tuple(by_case)):
            for case, path in scene.files.items():
                by_case[case].append(path.name)
        for case, found in by_case.items():
            kind = "gaussian" if case in ("gaussian-30", "blind", "gaussian-5-9") else "complex"
            assert sorted(found) == sorted(lists[kind]), case


class TestOthersSets:
    def test_cases_and_scenes_that_differ(self, tmp_path):
        touch(tmp_path, "icvl_512_50/a.mat", "icvl_512_50/b.mat", "icvl_512_noniid/b.mat", "icvl_512_noniid/c.mat")
        found = find_table_scenes(Data(dataset="noisy-set", root=str(tmp_path)), None)
        assert {scene.name: sorted(scene.files) for scene in found} == {
            "a": ["gaussian-50"],
            "b": ["gaussian-50", "non-iid"],
            "c": ["non-iid"],
        }
        data = Data(dataset="noisy-set", root=str(tmp_path), scenes=("b",))
        (scene,) = find_table_scenes(data, ["non-iid"])
        assert scene.files == {"non-iid": tmp_path / "icvl_512_noniid" / "b.mat"}
        with pytest.raises(ValueError, match="has no case 'stripe'; it has gaussian-50, non-iid"):
            find_table_scenes(data, ["stripe"])
