"""Weights: the file format keeps a network whole, refuses what is not one, and the table matches what ships."""

import json
import re
import resource

import numpy as np
import pytest
import safetensors.torch
import torch

from hsidenoise.cli.main import main
from hsidenoise.inference.denoise import denoise
from hsidenoise.models import create_model, shipped
from hsidenoise.models.shipped import DEFAULT_WEIGHTS, SHIPPED, WEIGHTS
from hsidenoise.models.weights import FORMAT, load_model, read_header, save_weights, sha256, start_from
from hsidenoise.noise.cases import corrupt

SMALL = {"planes": 7, "dim": 16, "num_blocks": (1, 1, 1)}


@pytest.fixture
def network():
    torch.manual_seed(3)
    return create_model("hcanet-bra", **SMALL).eval()


@pytest.fixture
def file(tmp_path, network):
    path = tmp_path / "small.safetensors"
    save_weights(path, network, name="hcanet-bra", metadata={"seed": "3", "data": "nothing"})
    return path


def rewrite(path, state=None, **header):
    """Write the file again with something changed in it."""
    state = safetensors.torch.load_file(path) if state is None else state
    old = {key: value for key, value in read_header(path).items() if key != "parameters"}
    safetensors.torch.save_file(state, path, {**old, **header})


def test_a_loaded_network_computes_the_same(file, network):
    loaded = load_model(file)
    noisy = torch.rand(2, 7, 20, 28)
    with torch.no_grad():
        assert torch.equal(loaded(noisy), network(noisy))
    assert not loaded.training
    assert loaded.planes == 7


def test_weights_say_which_tiles_and_how_many_passes_suit_them(file):
    noisy = np.random.default_rng(0).random((7, 56, 56), dtype=np.float32)
    usual = load_model(file)
    assert not {"tile", "pilot_rounds"} & set(vars(usual))
    rewrite(file, tile="32", passes="3")
    asking = load_model(file)
    assert (asking.tile, asking.pilot_rounds) == (32, 2)
    answer = denoise(noisy, asking)
    assert np.array_equal(answer, denoise(noisy, usual, tile=32, pilot_rounds=2))
    assert not np.array_equal(answer, denoise(noisy, usual, pilot_rounds=2))


def test_header_says_what_it_is(file, network):
    header = read_header(file)
    assert header["format"] == FORMAT
    assert header["model"] == "hcanet-bra"
    assert json.loads(header["config"])["planes"] == 7
    assert (header["seed"], header["data"]) == ("3", "nothing")
    assert int(header["parameters"]) == sum(tensor.numel() for tensor in network.state_dict().values())


def test_half_precision_and_other_memory_orders_are_stored_as_plain_float32(tmp_path, network):
    save_weights(tmp_path / "a", network.to(torch.bfloat16, memory_format=torch.channels_last), name="hcanet-bra")
    stored = safetensors.torch.load_file(tmp_path / "a")
    assert {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()} == {torch.float32}
    for key, tensor in network.state_dict().items():
        assert torch.equal(stored[key], tensor.to(stored[key].dtype))


def test_loading_leaves_the_random_state_alone(file):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    load_model(file)
    assert torch.equal(torch.rand(3), expected)


def test_a_network_with_another_attention_starts_from_what_both_have(file):
    other = create_model("hcanet-bra", **SMALL, attention=("none", "none", "channel"))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    saved = load_model(file).state_dict()
    with pytest.warns(
        UserWarning, match=r"small\.safetensors: weights of .* arrays start .*, 4 anew, and 6 are left out"
    ):
        start_from(other, file)
    anew = {name for name in before if name not in saved}
    assert {name.split(".")[0] for name in anew} == {"middle"}
    for name, value in other.state_dict().items():
        assert torch.equal(value, before[name] if name in anew else saved[name]), name
    with pytest.raises(ValueError, match="make model and model_config the same"):
        start_from(create_model("hcanet-bra", **SMALL | {"planes": 8}), file)


def test_a_failed_write_leaves_the_old_file(file, network, monkeypatch):
    before = file.read_bytes()
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_weights(file, network, name="hcanet-bra")
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_files_are_as_readable_as_any_other(file, tmp_path):
    (tmp_path / "other").touch()
    assert file.stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize(
    ("metadata", "message"),
    [({"format": "mine"}, "one of the header's own"), ({"seed": 3}, "must be a string")],
)
@pytest.mark.usefixtures("unchecked")
def test_metadata_is_checked(tmp_path, network, metadata, message):
    with pytest.raises(ValueError, match=message):
        save_weights(tmp_path / "a", network, name="hcanet-bra", metadata=metadata)
    assert not (tmp_path / "a").exists()


def test_a_network_without_config_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no `config`"):
        save_weights(tmp_path / "a", torch.nn.Linear(2, 3), name="hcanet-bra")


class TestBadFiles:
    """Each is a ValueError of one line that names the file."""

    def check(self, path, message):
        with pytest.raises(ValueError, match=message) as caught:
            load_model(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04" + bytes(300), bytes(8)])
    def test_no_safetensors(self, tmp_path, content):
        path = tmp_path / "w.safetensors"
        path.write_bytes(content)
        self.check(path, "not a weights file")

    @pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
    def test_cut_short(self, file, share):
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * share)])
        self.check(file, "not a weights file")

    def test_a_folder(self, tmp_path):
        self.check(tmp_path, "a folder")

    def test_someone_elses_safetensors(self, file):
        safetensors.torch.save_file({"a": torch.zeros(3)}, file)
        self.check(file, "not of hsidenoise")

    def test_another_format_version(self, file):
        rewrite(file, format="hsidenoise-weights-99")
        self.check(file, "hsidenoise-weights-99")

    def test_unknown_network(self, file):
        rewrite(file, model="no-such-net")
        self.check(file, "cannot build the network")

    @pytest.mark.parametrize(
        "config", ["{", '{"no_such_argument": 3}', "[1]", "[" * 3000, '{"a":' * 3000, "[" * 2000000]
    )
    def test_bad_config(self, file, config):
        rewrite(file, config=config)
        self.check(file, "cannot build the network")

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("dim", 20000), ("dim", -8), ("dim", "16"), ("dim", 16.5), ("dim", True), ("dim", None), ("dim", 10**400),
            ("planes", 0), ("planes", [7]), ("heads", 4), ("heads", [1, 2]), ("heads", [1, 2, "4"]),
            ("heads", [1, 2, 10**9]),
            ("num_blocks", [1, 1, 10**9]), ("num_blocks", {"a": 1}), ("num_refinement_blocks", 10**9),
            ("region_size", 10**9), ("region_size", 128),
            ("topk", 0), ("expansion", float("nan")), ("expansion", 1e9), ("expansion", -1.0),
            ("attention", {}), ("local", 3),
        ],
    )  # fmt: skip
    @pytest.mark.usefixtures("unchecked")
    def test_wild_config(self, file, name, value):
        rewrite(file, config=json.dumps(json.loads(read_header(file)["config"]) | {name: value}))
        self.check(file, f"cannot build the network it names: .*{name}")

    def test_a_network_that_the_file_does_not_hold_is_never_allocated(self, file):
        """20 GB of weights that are all within the bounds."""
        large = {"planes": 256, "dim": 1024, "num_blocks": [8, 64, 64], "heads": [1, 2, 4]}
        rewrite(file, config=json.dumps(large))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.check(file, "do not fit hcanet-bra as its header describes it")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000

    @pytest.mark.parametrize("name", ["tile", "passes"])
    @pytest.mark.parametrize(
        "value", ["-5", "0", "1e9", "1000000000", "two", "", "2.0", "nan", "9" * 5000, "[" * 3000, "²"]
    )
    def test_wild_wishes(self, file, name, value):
        rewrite(file, **{name: value})
        self.check(file, f"cannot build the network it names: {name} is '")

    def test_a_header_larger_than_any_of_ours(self, tmp_path):
        path = tmp_path / "w.safetensors"
        path.write_bytes((20_000_000).to_bytes(8, "little") + b"{" * 20_000_001)
        self.check(path, "its header has 20000000 bytes")

    def test_tensors_of_another_network(self, file):
        state = safetensors.torch.load_file(file)
        first, second, *_ = state
        state["extra"] = torch.zeros(2)
        state[first] = torch.zeros(1, 2, 3, 4, 5)
        del state[second]
        rewrite(file, state)
        self.check(file, r"1 missing.*1 unknown \(first: extra\).*1 of another shape")

    def test_missing_file_lists_the_names(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="neither shipped weights"):
            load_model(tmp_path / "none.safetensors")


@pytest.mark.parametrize("name", WEIGHTS)
class TestShipped:
    def test_hash(self, name):
        assert sha256(name) == WEIGHTS[name].sha256

    def test_row_agrees_with_the_file(self, name):
        row, header = WEIGHTS[name], read_header(name)
        assert row.name == name
        assert header["model"] == row.model
        assert json.loads(header["config"]).get("bands") == row.bands
        assert min(len(text) for text in (row.data, row.noise, row.licence, row.summary)) > 5
        assert all(re.fullmatch("[a-z0-9-]+", case) and 10 < score < 60 for case, score in row.scores.items())

    def test_it_has_learnt_something(self, name, real_crop):
        """The network's fixed parts denoise even with random weights: training must have left that far behind."""
        clean = torch.from_numpy(real_crop.copy())[: WEIGHTS[name].bands]
        noisy = torch.from_numpy(corrupt(clean.numpy(), "gaussian-50", seed=1).noisy)
        header = read_header(name)
        torch.manual_seed(0)
        untrained = create_model(header["model"], **json.loads(header["config"])).eval()
        with torch.no_grad():
            errors = [(model(noisy[None])[0] - clean).square().mean() for model in (load_model(name), untrained)]
        # the filters by planes are good without any: at this noise it is half a decibel that is learnt
        assert errors[0] < (0.6 if WEIGHTS[name].bands else 0.95) * errors[1]
        assert errors[0] < 0.05 * (noisy - clean).square().mean()


def test_every_shipped_file_has_a_row():
    assert {path.name for path in SHIPPED.glob("*")} == {row.file for row in WEIGHTS.values()} - {"hcanet.safetensors"}
    assert DEFAULT_WEIGHTS in WEIGHTS


def test_weights_that_an_installed_package_lacks_are_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(shipped, "_REPOSITORY", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"hcanet do not come with .*: take data/weights/hcanet\.safeten"):
        load_model("hcanet")
    assert main(["weights"]) == 0
    assert "network  hcanet, not in this installation: a file of the repository" in capsys.readouterr().out
