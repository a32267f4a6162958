import json
import re
import sys
from pathlib import Path

import jaxtyping
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from command_line import child
from torch import nn

from hsidenoise import __version__
from hsidenoise.cli.main import main
from hsidenoise.inference.denoise import denoise, denoise_file
from hsidenoise.inference.export import export_onnx
from hsidenoise.inference.network import FORMAT, OnnxNetwork
from hsidenoise.models import create_model
from hsidenoise.models.weights import read_header, save_weights

ROOT = Path(__file__).parents[2]
SMALL = {"dim": 8, "num_blocks": (0, 0, 1), "num_refinement_blocks": 0}
SIZES = [(1, 1, 1), (2, 4, 5), (1, 8, 3), (3, 33, 64), (2, 50, 37), (1, 70, 16)]


def small(name: str, **config: object) -> nn.Module:
    """A network of one block, on the level whose size is the least divisible."""
    bands = {} if "planes" in config else {"bands": 6}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = create_model(name, **{**bands, **SMALL, **config}).eval()
        nn.init.normal_(network.output.weight, std=0.1)  # or the skip alone would hide what the rest gets wrong
        return network


def export(*arguments: object) -> str:
    """By the command, in a process of its own: it says nothing but its answer, whatever the exporter warns of."""
    done = child("-m", "hsidenoise", "export", *arguments, cwd=ROOT, timeout=900)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture(scope="module")
def hcanet(tmp_path_factory):
    """By the function: the network, its weights as they were, and what was written."""
    network = small("hcanet", heads=(1, 2, 2)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    jaxtyping.config.update("jaxtyping_disable", True)  # tracing cannot see through the annotation checks
    done = export_onnx(network, tmp_path_factory.mktemp("hcanet") / "a.onnx", opset=18)
    jaxtyping.config.update("jaxtyping_disable", False)
    return network, before, done


@pytest.fixture(scope="module")
def planes(tmp_path_factory):
    """By the command: a block without attention and one with it, of the kinds that the default weights have."""
    folder, weights = tmp_path_factory.mktemp("planes"), read_header("hcanet-bra")
    network = small("hcanet-bra", **{**json.loads(weights["config"]), "planes": 3, **SMALL, "num_blocks": (1, 0, 1)})
    network.tile, network.pilot_rounds = 48, 2
    facts = {"seed": "0", "tile": "48", "pilot_rounds": "2"}
    save_weights(folder / "weights.safetensors", network, name="hcanet-bra", metadata=facts)
    printed = export("--weights", folder / "weights.safetensors", "-o", folder / "network.onnx")
    return network, folder / "network.onnx", printed


def written(path: Path, inputs: tuple[str, ...] = ("noisy",), **facts: str | None) -> Path:
    """A file as an export of an HCANet of 3 bands writes, which gives back its first input; other facts, or none."""
    said = {"format": FORMAT, "model": "hcanet", "config": '{"bands": 3}', "bands": "3", **facts}
    axes = ["batch", 3, "height", "width"]
    one, *more, output = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, axes) for name in (*inputs, "denoised")
    )
    node = onnx.helper.make_node("Identity", [inputs[0]], ["denoised"])
    graph = onnx.helper.make_graph([node], "g", [one, *more], [output])
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    onnx.helper.set_model_props(proto, {key: value for key, value in said.items() if value is not None})
    onnx.save(proto, path)
    return path


def differs(network: nn.Module, path: Path, *shape: int) -> float:
    noisy = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted, found = network(noisy), OnnxNetwork(path)(noisy)
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max())


def test_hcanet_of_any_batch_height_and_width(hcanet):
    network, _, done = hcanet
    for batch, height, width in SIZES:
        assert differs(network, done.path, batch, 6, height, width) < 1e-5, (batch, height, width)


def test_hcanet_bra_of_any_number_of_bands(planes):
    network, path, printed = planes
    for shape in ((1, 1, 33, 64), (2, 5, 50, 37), (1, 40, 5, 70)):
        assert differs(network, path, *shape) < 1e-5, shape
    assert "planes" in printed
    asked = OnnxNetwork(path)
    assert (asked.bands, asked.tile, asked.pilot_rounds) == (None, 48, 2)
    assert {item.name for item in asked._session.get_inputs()} == {"planes", "doubts", "spread"}


def test_the_command_says_what_it_wrote(planes):
    _, path, printed = planes
    for name, axes in (("planes", "12, height, width"), ("doubts", "2, height, width"), ("spread", "3")):
        assert f"input    {name} (batch, {axes})\n" in printed
    assert "output   denoised (batch, 3, height, width)\n" in printed
    assert re.search(r"checked  against PyTorch at 1 x 7 x 37 x 50, .*: off by \d\.\de-0[6-9] of the largest", printed)
    assert re.search(rf"wrote    {re.escape(str(path))}: hcanet-bra, 0\.\d MiB, ONNX operator set 20\n$", printed)
    assert sorted(file.name for file in path.parent.iterdir()) == ["network.onnx", "weights.safetensors"]


def test_the_file_says_what_it_is(planes):
    network, path, _ = planes
    facts = {item.key: item.value for item in onnx.load(path).metadata_props}
    assert facts["model"] == "hcanet-bra"
    assert json.loads(facts["config"]) == network.config
    assert facts["version"] == __version__
    assert "estimate_planes of cubes, planes=3" in facts["inputs"]
    assert json.loads(facts["weights"])["seed"] == "0"
    assert (OnnxNetwork(path).tile, OnnxNetwork(path).pilot_rounds) == (network.tile, network.pilot_rounds)


def test_the_file_needs_nothing_of_this_package(planes):
    """Standard operators only, and the three inputs by name."""
    network, path, _ = planes
    file = onnx.load(path)
    onnx.checker.check_model(file, full_check=True)
    assert {node.domain for node in file.graph.node} == {""}
    assert not file.functions
    noisy = torch.rand(1, 6, 19, 22, generator=torch.Generator().manual_seed(1))
    estimate = network.estimate(noisy)._asdict()
    session = onnxruntime.InferenceSession(path)
    given = {name: estimate[name].numpy() for name in ("planes", "doubts", "spread")}
    (found,) = session.run(["denoised"], given)
    with torch.no_grad():
        wanted = network.correct(*(estimate[name] for name in given))
    assert found == pytest.approx(wanted.numpy(), abs=1e-5)


def test_denoise_takes_the_network_and_the_file(planes, rng):
    network, path, _ = planes
    for bands in (4, 6, 9):
        noisy = rng.random((bands, 40, 50))
        wanted = denoise(noisy, network, tile=32)
        assert denoise(noisy, OnnxNetwork(path), tile=32) == pytest.approx(wanted, abs=1e-5)
        assert denoise(noisy, path, tile=32) == pytest.approx(wanted, abs=1e-5)
        assert denoise(noisy, str(path), tile=32, precision="auto") == pytest.approx(wanted, abs=1e-5)


def test_denoise_mirrors_bands_for_a_network_that_does_not(hcanet, rng):
    network, _, done = hcanet
    noisy = rng.random((4, 20, 30))
    assert denoise(noisy, done.path) == pytest.approx(denoise(noisy, network), abs=1e-5)
    with pytest.raises(ValueError, match="cubes of 4 bands do not go through"):
        OnnxNetwork(done.path)(torch.zeros(1, 4, 8, 9))


def test_denoise_file_names_the_file(tmp_path, rng):
    import scipy.io

    path = written(tmp_path / "a.onnx")
    scipy.io.savemat(tmp_path / "noisy.mat", {"cube": rng.random((20, 30, 3))})
    done = denoise_file(tmp_path / "noisy.mat", tmp_path / "clean.mat", path)
    assert (done.model, done.device) == (str(path), "cpu")


def test_threads(tmp_path):
    path = written(tmp_path / "a.onnx")
    for threads, wanted in ((None, torch.get_num_threads()), (3, 3)):
        options = OnnxNetwork(path, threads=threads)._session.get_session_options()
        assert options.intra_op_num_threads == wanted


def test_what_an_exported_network_cannot_do_is_refused(tmp_path, rng):
    path, noisy = written(tmp_path / "a.onnx"), rng.random((3, 8, 9))
    with pytest.raises(ValueError, match="runs as it was exported, in float32; precision bfloat16"):
        denoise(noisy, path, precision="bfloat16")
    with pytest.raises(ValueError, match="runs as it was exported, in float32; compile"):
        denoise(noisy, path, compile=True)
    with pytest.raises(ValueError, match=r"no device 'cuda:99'|ONNX Runtime cannot use CUDA"):
        OnnxNetwork(path, device="cuda:99")


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="hsidenoise export"):
        denoise(np.ones((3, 4, 5)) + np.arange(5), tmp_path / "gone.onnx")
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(ValueError, match=r"text\.onnx: ONNX Runtime cannot load it") as caught:
        OnnxNetwork(tmp_path / "text.onnx")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="an ONNX file, but not of hsidenoise"):
        OnnxNetwork(written(tmp_path / "other.onnx", format=None))
    with pytest.raises(ValueError, match=r"more\.onnx: its inputs are noisy, x, not those of an export"):
        OnnxNetwork(written(tmp_path / "more.onnx", inputs=("noisy", "x")))


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("bands", "1e9"), ("bands", "1000000000"), ("bands", "-5"), ("bands", "x"), ("bands", None), ("bands", "true"),
        ("pilot_rounds", "-5"), ("passes", "NaN"), ("tile", "1"),
        ("tile", "[" * 3000), ("config", "[1]"), ("config", "[" * 3000), ("config", '{"planes": 1000000000}'),
        ("config", '{"expansion": "a"}'),
    ],
)  # fmt: skip
def test_wild_metadata(tmp_path, field, text):
    says = next((name for name in ("planes", "expansion") if name in (text or "")), field)
    with pytest.raises(ValueError, match=rf"wild\.onnx: its metadata are not those of an export: .*{says}") as caught:
        OnnxNetwork(written(tmp_path / "wild.onnx", **{field: text}))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_refusals_come_before_the_work(tmp_path):
    network = small("hcanet", heads=(1, 2, 2))
    with pytest.raises(ValueError, match=r"a\.pt: an ONNX file is called \.onnx"):
        export_onnx(network, tmp_path / "a.pt")
    with pytest.raises(OSError, match="missing"):
        export_onnx(network, tmp_path / "no" / "a.onnx")
    with pytest.raises(ValueError, match="operator set 11 has no layer norm"):
        export_onnx(network, tmp_path / "a.onnx", opset=11)
    with pytest.raises(ValueError, match="Conv2d is not a network of this package"):
        export_onnx(nn.Conv2d(3, 3, 1), tmp_path / "a.onnx")
    with pytest.raises(FileNotFoundError, match="no-such-weights"):
        export_onnx("no-such-weights", tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("unchecked")
def test_a_graph_that_answers_otherwise_is_not_written(tmp_path, monkeypatch):
    other = onnx.load(written(tmp_path / "other.onnx", inputs=("noisy_padded",)))
    other.graph.node[0].output[0] = other.graph.output[0].name = "denoised_padded"
    monkeypatch.setattr("hsidenoise.inference.export._trace", lambda network, opset: other)
    network = create_model("hcanet", bands=3, **SMALL)
    nn.init.normal_(network.output.weight, std=0.1)
    with pytest.raises(ValueError, match=r"off by .*a\.onnx was not written") as caught:
        export_onnx(network, tmp_path / "a.onnx")
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["other.onnx"]


def test_the_network_is_left_as_it_was(hcanet):
    network, before, done = hcanet
    assert (done.path.name, done.model, done.opset) == ("a.onnx", "hcanet", 18)
    assert done.inputs == {"noisy": ("batch", "6", "height", "width")}
    assert done.output == ("batch", "6", "height", "width")
    assert done.error < 1e-5
    assert len({shape[0] for shape in done.checked}) > 1
    assert len({shape[2:] for shape in done.checked}) > 1
    assert onnx.load(done.path).opset_import[0].version == 18
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_extra_one_line_says_how(tmp_path, monkeypatch, capsys, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["export", "-o", str(tmp_path / "a.onnx")]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"hsidenoise: error: export needs {missing}, which is not installed")
    assert message.count("\n") == 1
    assert "pip install 'hsidenoise[onnx]'" in message
    assert list(tmp_path.iterdir()) == []


def test_an_exported_network_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"needs ONNX Runtime: pip install 'hsidenoise\[onnx\]'"):
        OnnxNetwork(written(tmp_path / "a.onnx"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-o", "a.pt"], "a.pt: an ONNX file is called .onnx"),
        (["-o", "no/a.onnx"], "no is missing; create it first"),
        (["-o", "a.onnx", "--weights", "no-such-weights"], "no-such-weights"),
        (["-o", "a.onnx", "--opset", "11"], "--opset: '11' is not a whole number from 18"),
        ([], "the following arguments are required: -o/--output"),
    ],
)
def test_the_command_refuses_in_one_line(tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("hsidenoise: error: ")
    assert err.count("\n") == 1
    assert says in err
    assert list(tmp_path.iterdir()) == []
