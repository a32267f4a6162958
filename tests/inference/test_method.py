import json

import pytest

from hsidenoise.inference.method import make_method
from hsidenoise.models import create_model
from hsidenoise.models.weights import TRAINING_SCENES, VALIDATION_SCENES, save_weights, scenes_seen

HEADER = {TRAINING_SCENES: '["oak", "ash"]', VALIDATION_SCENES: '["elm"]'}


def test_a_list_counts_before_words_and_older_words_are_read():
    assert scenes_seen({**HEADER, "data": "folder: fir"}) == ["ash", "oak"]
    assert scenes_seen({"data": "cave (hsir): Oak_ms, a b.mat"}) == ["a b", "oak"]
    assert scenes_seen({"validation": "Elm_ms"}, VALIDATION_SCENES) == ["elm"]
    assert scenes_seen({}) == scenes_seen({}, VALIDATION_SCENES) == []


def seen(path):
    return make_method(f"weights:{path}").seen_scenes()


def test_scenes_of_a_weights_file(tmp_path):
    network = create_model("hcanet-bra", planes=3, dim=8, num_blocks=(1, 0, 0), num_refinement_blocks=0)
    save_weights(tmp_path / "a.safetensors", network, name="hcanet-bra", metadata=HEADER)
    assert seen(tmp_path / "a.safetensors") == (("ash", "oak"), ("elm",))


def test_scenes_of_an_onnx_file_go_by_the_header_of_its_weights(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from hsidenoise.inference.network import FORMAT

    sizes = [1, 5, "height", "width"]
    noisy, denoised = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sizes) for name in ("noisy", "denoised")
    )
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["noisy"], ["denoised"])], "g", [noisy], [denoised]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    facts = {"format": FORMAT, "bands": "5", "mirrors_bands": "false", "weights": json.dumps(HEADER)}
    for key, value in facts.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, tmp_path / "a.onnx")
    assert seen(tmp_path / "a.onnx") == (("ash", "oak"), ("elm",))


def test_no_weights_and_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        seen("nowhere.safetensors")
    (tmp_path / "a.safetensors").write_bytes(b"text")
    with pytest.raises(ValueError, match="not a weights file"):
        seen(tmp_path / "a.safetensors")
