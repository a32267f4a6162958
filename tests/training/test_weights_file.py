import json

import pytest

from hsidenoise.inference.method import make_method
from hsidenoise.models import create_model
from hsidenoise.models.weights import TRAINING_SCENES, VALIDATION_SCENES, save_weights, scenes_seen, sha256
from hsidenoise.training.weights_file import origin_of


@pytest.fixture
def network():
    return create_model("hcanet-bra", planes=3, dim=8, num_blocks=(1, 0, 0), num_refinement_blocks=0)


def test_scenes_are_read_from_the_list_or_from_older_words():
    assert scenes_seen({TRAINING_SCENES: '["b", "a"]', "data": "folder: c"}) == ["a", "b"]
    assert scenes_seen({"data": "cave (hsir): Balloons_ms, beads_ms"}) == ["balloons", "beads"]
    assert scenes_seen({"validation": "cd_ms, a b"}, VALIDATION_SCENES) == ["a b", "cd"]
    assert scenes_seen({}) == []


def test_origin_adds_up_over_generations(tmp_path, network):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    save_weights(
        first, network, name="hcanet-bra", metadata={"steps": "100", "minutes": "2.5", "data": "folder: a_ms, b"}
    )
    origin = origin_of(first)
    assert origin["steps_before"] == "100"
    assert origin["minutes_before"] == "2.5"
    assert origin["initial_weights_sha256"] == sha256(first)
    assert json.loads(origin[TRAINING_SCENES]) == ["a", "b"]
    own = {"steps": "30", "minutes": "1.0", TRAINING_SCENES: '["a", "b", "c"]'}
    save_weights(second, network, name="hcanet-bra", metadata={**origin, **own})
    origin = origin_of(second)
    assert origin["steps_before"] == "130"
    assert origin["minutes_before"] == "3.5"
    assert json.loads(origin[TRAINING_SCENES]) == ["a", "b", "c"]


def test_without_initial_weights_nothing_came_before():
    assert origin_of(None) == {"initial_weights": "none", "steps_before": "0", "minutes_before": "0.0"}


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("steps", "many"), ("steps", "-5"), ("steps_before", "9" * 5000), ("minutes", "nan"), ("minutes_before", "inf"),
        ("training_scenes", "[" * 3000), ("training_scenes", '{"oak": 1}'), ("validation_scenes", "[3]"),
    ],
)  # fmt: skip
def test_a_wild_header_is_one_line_that_names_file_and_field(tmp_path, network, field, text):
    path = tmp_path / "wild.safetensors"
    save_weights(path, network, name="hcanet-bra", metadata={field: text})
    with pytest.raises(ValueError, match=rf"wild\.safetensors: {field} is ") as caught:
        origin_of(path)
    assert "\n" not in str(caught.value)
    if field.endswith("scenes"):
        with pytest.raises(ValueError, match=rf"wild\.safetensors: {field} is "):
            make_method(f"weights:{path}").seen_scenes()
