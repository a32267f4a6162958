from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from hsidenoise.benchmark.config import read_config, with_choice
from hsidenoise.benchmark.options import TableOptions
from hsidenoise.benchmark.published import published_lines
from hsidenoise.cli.main import main
from hsidenoise.inference.method import OPTIONS
from hsidenoise.noise.cases import noise_case

TABLES = Path(__file__).parents[2] / "configs" / "tables"
SHIPPED = sorted(path.name for path in TABLES.glob("*.yaml"))

FULL = {
    "title": "Trees",
    "data": {"root": "cubes", "part": "all", "crop": 16},
    "cases": ["gaussian-30", "mixture"],
    "methods": ["noisy", "svd-tv", {"method": "weights:hcanet-bra", "label": "ours", "pilot_rounds": 0}],
    "protocols": ["standard", "sert"],
    "seed": 3,
    "figure": {"case": "mixture", "methods": ["noisy", "ours"], "pixel": [1, 2], "inset": [0, 0, 8], "band": 2},
    "efficiency": "mixture",
    "published": ["SERT"],
    "notes": ["A note."],
}


def write(folder, found):
    path = folder / "trees.yaml"
    path.write_text(found if isinstance(found, str) else yaml.safe_dump(found))
    return path


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_table_parses_and_names_what_exists(name):
    config = read_config(TABLES / name)
    assert config.name == Path(name).stem
    for case in config.cases or ():
        noise_case(case)
    if config.published:
        assert published_lines(config.published, cases=config.cases)


def test_shipped_tables_are_there():
    needed = {"icvl_gaussian", "icvl_complex", "cave_gaussian", "cave_complex", "pavia", "efficiency"}
    assert needed | {"protocols", "icvl_noisy_set"} <= {Path(name).stem for name in SHIPPED}


def test_all_of_a_file_is_read(tmp_path):
    config = read_config(write(tmp_path, FULL))
    assert (config.name, config.title, config.seed, config.protocols) == ("trees", "Trees", 3, ("standard", "sert"))
    assert (config.data.root, config.data.part, config.data.crop, config.data.split) == ("cubes", "all", 16, None)
    assert [(each.name, each.label, dict(each.options)) for each in config.methods] == [
        ("noisy", "noisy", {}),
        ("svd-tv", "svd-tv", {}),
        ("weights:hcanet-bra", "ours", {"pilot_rounds": 0}),
    ]
    assert config.figure.pixel == (1, 2)
    assert (config.figure.inset, config.figure.band, config.figure.methods) == ((0, 0, 8), 2, ("noisy", "ours"))
    assert (config.efficiency, config.published, config.notes) == ("mixture", ("SERT",), ("A note.",))


def test_what_is_left_out_has_its_default(tmp_path):
    few = {"title": "t", "data": {"root": "a", "dataset": "noisy-set"}, "methods": ["noisy"]}
    config = read_config(write(tmp_path, few))
    assert (config.cases, config.protocols, config.seed, config.figure, config.efficiency) == (
        None, ("standard",), 0, None, None,
    )  # fmt: skip


def test_every_option_of_weights_is_taken(tmp_path):
    options = {"pilot_rounds": 2, "ensemble": 2, "tile": 64, "overlap": 2, "strength": 0.5, "precision": "auto"}
    options |= {"normalize": "auto"}
    assert set(options) == set(OPTIONS)
    config = read_config(write(tmp_path, FULL | {"methods": [{"method": "weights:a", **options}], "figure": None}))
    assert config.methods[0].options == options


LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghi"))

WRONG = [
    ("{a: [", "not a YAML file"),
    (LAUGHS, "more than 10 references"),
    ("title: &a [*a]", "*a lies in what it refers to"),
    ("title: " + "[" * 3000, "not a YAML file"),
    ("- " * 3000, "more than 20 levels"),
    ("title: " + "x" * 200_000, "more than 40000 characters"),
    ("title: !!bool x", "does not fit its tag"),
    ("title: !!timestamp x", "does not fit its tag"),
    ("title: !!int ''", "does not fit its tag"),
    ("title: !!int x", "not a YAML file: invalid literal"),
    ("title: 2020-99-99", "not a YAML file: month must be"),
    ("title: 1" + "0" * 5000, "not a YAML file: Exceeds the limit"),
    ("title: !!python/object/apply:os.system ['true']", "could not determine a constructor for the tag"),
    ({"title": ["a"]}, "title is ['a']; it is a text"),
    ({"title": 3}, "title is 3; it is a text"),
    ({"efficiency": ["mixture"]}, "efficiency is ['mixture']; it is a text"),
    ({"data": {"crop": 10**9}}, "data.crop is 1000000000"),
    ({"seed": 2**64}, "seed is 18446744073709551616"),
    ({"seed": 10**400}, "it is a whole number from 0 to 9223372036854775807"),
    (
        {"figure": {"case": "mixture", "pixel": [1, 10**12]}},
        "figure.pixel[1] is 1000000000000; it is a whole number from 0 to 1048576",
    ),
    ({"methods": [{"method": "tv", "label": [1]}]}, "label is [1]; it is a name"),
    (
        {"methods": [{"method": "weights:a", "pilot_rounds": 10**9}]},
        "pilot_rounds is 1000000000; it is a whole number from 0 to 15",
    ),
    (
        {"methods": [{"method": "weights:a", "pilot_rounds": -5}]},
        "pilot_rounds is -5; it is a whole number from 0 to 15",
    ),
    ({"methods": [{"method": "weights:a", "tile": 0}]}, "tile is 0; it is a whole number from 1"),
    ({"methods": [{"method": "weights:a", "ensemble": 3}]}, "ensemble is 3; it is one of 1, 2, 4, 8"),
    ({"methods": [{"method": "weights:a", "precision": "half"}]}, "precision is 'half'; it is one of float32"),
    ({"methods": [{"method": "weights:a", "normalize": "x" * 9999}]}, "it is one of auto"),
    ({"methods": ["x" * 9999]}, "unknown method"),
    ("", "the file is None; it is a mapping with title, data"),
    ("[1, 2]", "the file is [1, 2]; it is a mapping with title, data"),
    ({"titel": "t"}, "the file has no key 'titel'; did you mean 'title'?"),
    ({"title": None}, "title is None; it is a text"),
    ({"title": " "}, "title is empty"),
    ("title: t\ndata: {root: a}\ncases: [blind]", "'methods' is missing"),
    ({"data": None}, "data is None; it is a mapping with dataset"),
    ({"data": "cubes"}, "data is 'cubes'; it is a mapping with dataset"),
    ({"data": {"folder": "a"}}, "data has no key 'folder'; known: dataset"),
    ({"data": {"root": 5}}, "data.root is 5"),
    ({"data": {"root": None}}, "data.root is None"),
    (
        {"data": {"dataset": "cvae"}},
        "it is one of icvl, cave, folder, noisy-set; did you mean 'cave'?",
    ),
    (
        {"data": {"part": "tset"}},
        "data.part is 'tset'; it is one of test, validation, train, all",
    ),
    ({"data": {"missing": "maybe"}}, "data.missing is 'maybe'"),
    ({"data": {"crop": "big"}}, "data.crop is 'big'"),
    ({"data": {"crop": True}}, "data.crop is True"),
    ({"data": {"crop": 0}}, "data.crop is 0"),
    ({"data": {"bands": 0}}, "data.bands is 0"),
    ({"data": {"scenes": "oak"}}, "data.scenes is 'oak'; it is a list, each a text"),
    ({"data": {"scenes": [7]}}, "data.scenes[0] is 7; it is a text"),
    ({"data": {"scenes": ["oak", "oak"]}}, "the scene 'oak' is named twice"),
    ({"data": {"dataset": "noisy-set", "crop": 8}}, "data.crop: a noisy set is taken as it is"),
    ({"cases": None}, "'cases' is missing"),
    ({"cases": []}, "no case is named"),
    ({"cases": "blind"}, "cases is 'blind'; it is a list, each a text"),
    ({"cases": [30]}, "cases[0] is 30; it is a text"),
    ({"cases": ["mixture", "mixture"]}, "the case 'mixture' is named twice"),
    ({"methods": "noisy"}, "methods is 'noisy'; it is a list, each method"),
    ({"methods": ["noisy", "svd-vt"]}, "unknown method 'svd-vt'; did you mean 'svd-tv'?"),
    ({"methods": ["noisy", "noisy"]}, "the method 'noisy' is named twice; give one another label"),
    ({"methods": ["tv", {"method": "pca", "label": "tv"}]}, "the method 'tv' is named twice"),
    ({"methods": [{"label": "x"}]}, "is not a method: write its name"),
    ({"methods": [4]}, "4 is not a method"),
    ({"methods": [{"method": "tv", "passes": 1}]}, "method 'tv' has no option 'passes'"),
    ({"methods": [{"method": "weights:a", "pass": 1}]}, "has no option 'pass'; weights have tile"),
    (
        {"methods": [{"method": "weights:a", "pilot_rounds": "1"}]},
        "pilot_rounds is '1'; it is a whole number",
    ),
    ({"methods": [{"method": "noisy", "label": "input"}]}, "cannot be labelled 'input'"),
    ({"methods": [{"method": "tv", "label": "noisy"}]}, "cannot be labelled 'noisy'"),
    ({"methods": [{"method": "tv", "label": "clean"}]}, "cannot be labelled 'clean'"),
    ({"methods": [{"method": "tv", "label": " "}]}, "cannot be labelled"),
    ({"protocols": ["sret"]}, "protocols[0] is 'sret'; it is one of standard"),
    ({"protocols": ["sert", "sert"]}, "the protocol 'sert' is named twice"),
    ({"protocols": []}, "no protocol is named"),
    ({"seed": -1}, "seed is -1"),
    ({"seed": True}, "seed is True"),
    ({"figure": {"scene": "oak"}}, "'figure.case' is missing"),
    ({"figure": {"case": "blind"}}, "figure: the case 'blind' is none of the table"),
    ({"figure": {"case": "mixture", "methods": ["tv"]}}, "figure: there is no method 'tv'"),
    ({"figure": {"case": "mixture", "methods": "noisy"}}, "figure.methods is 'noisy'; it is a list, each a text"),
    (
        {"figure": {"case": "mixture", "pixel": [1]}},
        "figure.pixel is [1]; it is a list of 2, each a whole number",
    ),
    ({"figure": {"case": "mixture", "inset": [1, 2]}}, "figure.inset is [1, 2]; it is a list of 3"),
    ({"figure": {"case": "mixture", "band": "first"}}, "figure.band is 'first'"),
    ({"figure": {"case": "mixture", "colour": 1}}, "figure has no key 'colour'"),
    ({"figure": {"case": "mixture", "scene": 3}}, "figure.scene is 3"),
    ({"efficiency": "blind"}, "efficiency: the case 'blind' is none of the table"),
    ({"published": "SERT"}, "published is 'SERT'; it is a list"),
    ({"notes": [3]}, "notes[0] is 3; it is a text"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_is_wrong_is_one_line_that_names_the_file(tmp_path, change, message):
    path = write(tmp_path, change if isinstance(change, str) else FULL | change)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_config(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert message in text
    assert "\n" not in text


def test_no_text_and_no_file(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"a\.yaml: not a YAML file"):
        read_config(tmp_path / "a.yaml")
    with pytest.raises(OSError, match=r"b\.yaml"):
        read_config(tmp_path / "b.yaml")


def test_code_is_refused_before_it_is_imported(tmp_path, monkeypatch, capsys):
    (tmp_path / "stranger.py").write_text("open('ran', 'w')\ndef method(noisy): return noisy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    path = write(tmp_path, FULL | {"methods": ["noisy", "stranger:method"], "figure": None})
    for more in ([], ["--methods", "tv", "stranger:method"]):
        assert main(["benchmark", "--config", str(path), "--no-code", *more]) == 2
        message = capsys.readouterr().err
        assert message.startswith("hsidenoise: error: the method 'stranger:method' is code, which --no-code refuses")
        assert message.count("\n") == 1
        assert sorted(each.name for each in tmp_path.iterdir()) == ["stranger.py", "trees.yaml"]
    # a table without code goes on: to its data
    assert main(["benchmark", "--config", str(path), "--no-code", "--methods", "tv"]) == 2
    assert "cubes" in capsys.readouterr().err


class TestChoice:
    @pytest.fixture
    def config(self, tmp_path):
        return read_config(write(tmp_path, FULL))

    def test_nothing_changes_nothing(self, config):
        assert with_choice(config, TableOptions("t")) == config

    def test_root_seed_and_protocols(self, config):
        assert with_choice(config, TableOptions("t", root="b")).data.root == "b"
        assert with_choice(config, TableOptions("t", root="b")).data.crop == 16
        assert with_choice(config, TableOptions("t", seed=9)).seed == 9
        assert with_choice(config, TableOptions("t", protocols=["hsir"])).protocols == ("hsir",)
        with pytest.raises(ValueError, match=r"protocols\[0\] is 'x'"):
            with_choice(config, TableOptions("t", protocols=["x"]))
        with pytest.raises(ValueError, match="seed is -2"):
            with_choice(config, TableOptions("t", seed=-2))

    def test_methods_by_label_or_new_ones_in_the_order_given(self, config):
        chosen = with_choice(config, TableOptions("t", methods=["ours", "pca", "peer:function", "svd-tv"]))
        assert [method.name for method in chosen.methods] == ["weights:hcanet-bra", "pca", "peer:function", "svd-tv"]
        assert dict(chosen.methods[0].options) == {"pilot_rounds": 0}
        # the figure drops what is gone and what it never had, and shows what is new
        assert chosen.figure.methods == ("ours", "pca", "peer:function")
        assert with_choice(config, TableOptions("t", methods=["svd-tv"])).figure.methods is None

    def test_methods_that_are_none(self, config):
        with pytest.raises(ValueError, match="unknown method 'outs'; did you mean 'ours'"):
            with_choice(config, TableOptions("t", methods=["outs"]))
        with pytest.raises(ValueError, match="'noisy' is named twice"):
            with_choice(config, TableOptions("t", methods=["noisy", "noisy"]))

    def test_cases_take_figure_and_efficiency_along(self, config):
        kept = with_choice(config, TableOptions("t", cases=["blind", "mixture"]))
        assert (kept.cases, kept.figure.case, kept.efficiency) == (("blind", "mixture"), "mixture", "mixture")
        moved = with_choice(config, TableOptions("t", cases=["blind", "stripe"], methods=["ours"]))
        assert (moved.figure.case, moved.efficiency, moved.figure.methods) == ("blind", "blind", ("ours",))
        with pytest.raises(ValueError, match="'blind' is named twice"):
            with_choice(config, TableOptions("t", cases=["blind", "blind"]))
