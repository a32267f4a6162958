"""The worked example: a detector described by a YAML list, with bi-level routing attention in it."""

import copy
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from hsidenoise import BiFormerBlock, BiLevelRoutingAttention

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "configs" / "examples" / "yolo_style_bra.yaml"
sys.path.insert(0, str(ROOT / "scripts"))  # as for `python scripts/yolo_style_model.py`
example = importlib.import_module("yolo_style_model")
layers = importlib.import_module("yolo_style_layers")

TINY = {
    "nc": 3,
    "backbone": [
        [-1, 1, "Conv", [16, 3, 4]],
        [-1, 1, "Conv", [24, 3, 2]],
        [-1, 2, "C2f", [24, True]],
        [-1, 1, "BiFormerBlock", [3, "None", 2, {"region_size": 4}]],
        [-1, 1, "Conv", [32, 3, 2]],
        [-1, 1, "BiLevelRoutingAttention", [4, {"n_win": None, "region_size": 2}]],
        [-1, 1, "SPPF", [32]],
    ],
    "head": [
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, 3], 1, "Concat", [1]],
        [-1, 1, "C2f", [24]],
        [[-1, 6], 1, "Detect", ["nc"]],
    ],
}


def tiny(**changes):
    return {**copy.deepcopy(TINY), **changes}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return example.load_model(EXAMPLE)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (160, 128)])
def test_the_example_gives_maps_at_three_strides(model, height, width):
    with torch.no_grad():
        maps = model.eval()(torch.rand(2, 3, height, width))
    assert [tuple(grid.shape) for grid in maps] == [(2, 67, height // s, width // s) for s in (8, 16, 32)]
    boxes, logits, cells = layers.decode(maps, height)
    assert boxes.shape == (2, len(cells), 4)
    assert logits.shape == (2, len(cells), 3)


def test_attention_is_where_the_file_says(model):
    kinds = {index: type(layer) for index, layer in enumerate(model.layers)}
    assert issubclass(kinds[11], BiLevelRoutingAttention)
    assert [index for index, kind in kinds.items() if issubclass(kind, BiFormerBlock)] == [7]
    attention, block = model.layers[11], model.layers[7]
    assert (attention.dim, attention.num_heads, attention.region_size, attention.topk) == (256, 8, 4, 4)
    assert (block.attn.dim, block.attn.num_heads, block.attn.region_size, block.attn.topk) == (128, 4, 8, 4)


def test_channels_first_attention_is_the_attention_on_a_permuted_image():
    torch.manual_seed(0)
    options = {"num_heads": 2, "n_win": None, "region_size": 4, "topk": 2}
    ours, plain = layers.ChannelsFirstAttention(8, **options), BiLevelRoutingAttention(8, **options)
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(1, 8, 7, 10)
    expected = torch.stack([*plain(torch.stack([*x.unbind(1)], dim=-1)).unbind(-1)], dim=1)
    torch.testing.assert_close(ours(x), expected)


YOLOV8 = [
    *[[-1, 1, "Conv", [64, 3, 2]], [-1, 1, "Conv", [128, 3, 2]], [-1, 3, "C2f", [128, True]]],
    *[[-1, 1, "Conv", [256, 3, 2]], [-1, 6, "C2f", [256, True]], [-1, 1, "Conv", [512, 3, 2]]],
    *[[-1, 6, "C2f", [512, True]], [-1, 1, "Conv", [1024, 3, 2]], [-1, 3, "C2f", [1024, True]]],
    *[[-1, 1, "SPPF", [1024, 5]], [-1, 1, "nn.Upsample", ["None", 2, "nearest"]], [[-1, 6], 1, "Concat", [1]]],
    *[[-1, 3, "C2f", [512]], [-1, 1, "nn.Upsample", ["None", 2, "nearest"]], [[-1, 4], 1, "Concat", [1]]],
    *[[-1, 3, "C2f", [256]], [-1, 1, "Conv", [256, 3, 2]], [[-1, 12], 1, "Concat", [1]], [-1, 3, "C2f", [512]]],
    *[[-1, 1, "Conv", [512, 3, 2]], [[-1, 9], 1, "Concat", [1]], [-1, 3, "C2f", [1024]]],
    [[15, 18, 21], 1, "Detect", ["nc"]],
]


@pytest.mark.parametrize(
    ("scale", "factors", "published"),
    [
        ("n", [0.33, 0.25, 1024], 3_157_184),
        ("s", [0.33, 0.50, 1024], 11_166_544),
        ("m", [0.67, 0.75, 768], 25_902_624),
        ("l", [1.00, 1.00, 512], 43_691_504),
    ],
)
def test_without_attention_it_weighs_what_yolov8_does(scale, factors, published):
    """Trainable parameters as published with the YOLOv8 model file (its own DFL adds 16 fixed ones)."""
    description = {"nc": 80, "scales": {"x": [1.0, 1.25, 512], scale: factors}, "backbone": YOLOV8[:10]}
    with torch.device("meta"):
        model = example.DetectionModel({**description, "head": YOLOV8[10:]}, scale)
    assert sum(parameter.numel() for parameter in model.parameters()) == published


def test_depth_and_width_may_be_written_without_scales():
    model = example.DetectionModel(tiny(depth_multiple=0.5, width_multiple=2.0))
    assert [repeats for _, repeats, _ in model.rows][2] == 1
    assert model.layers[0][0].out_channels == 32


def test_repeats_of_other_modules_are_a_sequence():
    description = tiny()
    description["backbone"][5][1] = 2
    layer = example.DetectionModel(description).layers[5]
    assert isinstance(layer, torch.nn.Sequential)
    assert [type(part) for part in layer] == [layers.ChannelsFirstAttention] * 2


def test_gradient_reaches_every_parameter(model):
    """No exception: with hard routing, as in the example, the routing has no parameters."""
    torch.manual_seed(0)
    model.train()
    images, boxes, kinds = example.draw_squares(2, 96, 3, torch.Generator().manual_seed(0))
    model.zero_grad()
    example.toy_loss(model(images), boxes, kinds, 96).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_weights_go_through_a_state_dict(model):
    torch.manual_seed(1)
    other = example.load_model(EXAMPLE)
    images = torch.rand(1, 3, 64, 96)
    model.eval(), other.eval()
    with torch.no_grad():
        assert not torch.equal(model(images)[0], other(images)[0])
        other.load_state_dict(model.state_dict(), strict=True)
        for ours, theirs in zip(model(images), other(images), strict=True):
            assert torch.equal(ours, theirs)


def test_the_loss_goes_down():
    torch.manual_seed(0)
    losses = example.train(example.DetectionModel(TINY), 30, 8, 64, torch.Generator().manual_seed(0))
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_decoded_boxes_and_the_loss_agree_with_a_square_put_in_by_hand():
    """Every cell inside names its class and its distances exactly: the loss vanishes; one side off, it does not."""
    size, stride, nc = 64, 8, 2
    box = torch.tensor([[10.0, 18.0, 45.0, 57.0]])
    grid = torch.full((1, 4 * layers.REG_MAX + nc, 8, 8), -40.0)
    for row in range(8):
        for column in range(8):
            x, y = (column + 0.5) * stride, (row + 0.5) * stride
            if not (10 < x < 45 and 18 < y < 57):
                continue
            grid[0, 4 * layers.REG_MAX + 1, row, column] = 40.0
            for side, distance in enumerate((x - 10, y - 18, 45 - x, 57 - y)):
                low, share = int(distance // stride), distance / stride % 1
                bins = grid[0, side * layers.REG_MAX : (side + 1) * layers.REG_MAX, row, column]
                bins[low], bins[low + 1] = torch.tensor(1 - share).log(), torch.tensor(share).log()
    found, logits, cells = layers.decode([grid], size)
    chosen = logits[0].max(dim=1).values > 0
    assert chosen.sum() == 5 * 5
    torch.testing.assert_close(found[0, chosen], box.expand(25, 4), rtol=1e-5, atol=1e-4)
    assert torch.equal(cells[9], torch.tensor([12.0, 12.0, 8.0]))
    assert example.toy_loss([grid], box, torch.tensor([1]), size) < 1e-4
    assert example.toy_loss([grid], box + torch.tensor([0, 0, 2.0, 0]), torch.tensor([1]), size) > 0.05
    assert example.toy_loss([grid], box, torch.tensor([0]), size) > 10


def test_squares_lie_where_the_boxes_say():
    images, boxes, kinds = example.draw_squares(6, 48, 4, torch.Generator().manual_seed(3))
    assert images.shape == (6, 3, 48, 48)
    for pixels, (left, top, right, bottom), kind in zip(images, boxes.int().tolist(), kinds, strict=True):
        inside = pixels[:, top:bottom, left:right]
        outside = pixels.clone()
        outside[:, top:bottom, left:right] = 0
        assert outside.max() <= 0.3
        assert inside.amax() > 0.4
        assert 12 <= right - left == bottom - top <= 24
        assert 0 <= kind < 4


def test_the_command_shows_layers_shapes_and_a_falling_loss():
    options = ["--size", "64x96", "--steps", "10", "--batch", "4", "--train-size", "64"]
    command = [sys.executable, "scripts/yolo_style_model.py", str(EXAMPLE), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert " 11  -1                  1  BiLevelRoutingAttention      269,824  256x2x3" in done.stdout
    assert "(1, 67, 8, 12)" in done.stdout
    assert "boxes (1, 126, 4), class logits (1, 126, 3)" in done.stdout
    assert "mean of the first 2 steps" in done.stdout


def test_another_scale_and_no_training(capsys):
    assert example.main([str(EXAMPLE), "--size", "32", "--steps", "0", "--scale", "s"]) == 0
    shown = capsys.readouterr().out
    assert "512x1x1" in shown
    assert "loss" not in shown


def put(part, index, row):
    description = tiny()
    description[part][index] = row
    return description


def without(key):
    return {name: value for name, value in TINY.items() if name != key}


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("just a word", "expected a mapping with nc, backbone and head"),
        (without("nc"), "the key 'nc' is missing"),
        (without("backbone"), "the key 'backbone' is missing"),
        (without("head"), "the key 'head' is missing"),
        (tiny(head=[]), "'head' must be a list of layers"),
        (tiny(nc=0), "nc must be a whole number"),
        (tiny(nc="three"), "nc must be a whole number"),
        (tiny(scales={"n": [1, 2]}), "three positive numbers"),
        (tiny(scales={"n": 1}), "three positive numbers"),
        (tiny(scales=[1, 1, 8]), "'scales' must map names"),
        (tiny(width_multiple=0), "three positive numbers"),
        (put("backbone", 1, [-1, 1, "Conv"]), r"layer 1: expected \[from, repeats, module, args\]"),
        (put("backbone", 1, [-1, 1, "Konv", [8]]), r"layer 1 \(Konv\): unknown module; known: Conv, C2f"),
        (put("backbone", 1, [1, 1, "Conv", [8]]), r"layer 1 \(Conv\): from 1 points forward"),
        (put("head", 1, [[-1, 9], 1, "Concat", [1]]), r"layer 8 \(Concat\): from 9 points forward"),
        (put("backbone", 1, [-3, 1, "Conv", [8]]), "from -3 points before the first layer"),
        (put("backbone", 0, [0, 1, "Conv", [8]]), r"layer 0 \(Conv\): from 0 points forward"),
        (put("backbone", 1, ["last", 1, "Conv", [8]]), "from must be a layer"),
        (put("backbone", 1, [[], 1, "Conv", [8]]), "from must be a layer"),
        (put("backbone", 1, [-1, 0, "Conv", [8]]), "repeats must be a whole number"),
        (put("backbone", 1, [-1, 1, "Conv", 8]), "args must be a list"),
        (put("backbone", 1, [-1, 1, "Conv", []]), "must start with the number of channels out"),
        (put("backbone", 1, [-1, 1, "Conv", ["wide"]]), "channels out must be a whole number"),
        (put("backbone", 1, [-1, 1, "Conv", [8, 3, 1, 1]]), r"layer 1 \(Conv\): .*positional arguments"),
        (put("backbone", 1, [-1, 1, "Conv", [8, "x"]]), r"layer 1 \(Conv\): .*"),
        (put("backbone", 5, [-1, 1, "BiLevelRoutingAttention", [5]]), r"layer 5 .*num_heads=5"),
        (put("backbone", 5, [-1, 1, "BiLevelRoutingAttention", [4, {"heads": 4}]]), r"layer 5 .*heads"),
        (put("backbone", 5, [-1, 1, "BiFormerBlock", [4, {3: 4}]]), "arguments by name need names"),
        (put("backbone", 3, [-1, 1, "BiFormerBlock", [3, 7, 50]]), r"layer 3 \(BiFormerBlock\): topk=50"),
        (put("backbone", 5, [[-1, 3], 1, "BiFormerBlock", [4]]), "takes one layer, not 2"),
        (put("head", 1, [[-1, 3], 2, "Concat", [1]]), "cannot be repeated"),
        (put("head", 1, [[-1, 3], 1, "Concat", [2]]), "joins channels, axis 1, not axis 2"),
        (put("head", 3, [-1, 1, "Conv", [8]]), "layer 10 is the last one and must be Detect, not Conv"),
        # only an image shows these
        (put("head", 1, [[-1, 4], 1, "Concat", [1]]), r"layer 8 \(Concat\) cannot take an image of 64 x 64"),
        (put("backbone", 3, [-1, 1, "BiFormerBlock", [3]]), r"layer 3 \(BiFormerBlock\) cannot .*multiples of n_win=7"),
    ],
)
def test_a_bad_description_gives_one_clear_line(tmp_path, capsys, description, message):
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(description))
    assert_refused(capsys, [str(path), "--size", "64"], message)


def assert_refused(capsys, arguments, message):
    assert example.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    assert said.startswith("yolo_style_model: error: ")
    with pytest.raises(ValueError, match=message):
        raise ValueError(said)


def test_a_file_that_is_no_yaml_gives_one_clear_line(tmp_path, capsys):
    path = tmp_path / "bad.yaml"
    path.write_text("backbone: [1, 2\nhead: ]")
    assert_refused(capsys, [str(path)], "bad.yaml is not YAML: .*line 2")
    path.write_bytes(b"\xff\xfe\x00nc")
    assert_refused(capsys, [str(path)], "bad.yaml is not YAML: it is not text")
    path.write_bytes(b"nc: \x01")
    assert_refused(capsys, [str(path)], "bad.yaml is not YAML: ")
    assert_refused(capsys, [str(tmp_path / "absent.yaml")], "cannot read .*absent.yaml: No such file")
    assert_refused(capsys, [str(tmp_path)], "cannot read .*: Is a directory")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "wide"], "--size wide"),
        (["--size", "1x2x3"], "HEIGHTxWIDTH"),
        (["--size", "0"], "--size 0"),
        (["--size", "100"], r"layer 13 \(Concat\) cannot take an image of 100 x 100"),
        (["--scale", "xl"], "unknown scale 'xl'; known: n, s"),
        (["--steps", "-1"], "--steps"),
        (["--batch", "0"], "--batch"),
        (["--train-size", "16"], "--train-size"),
    ],
)
def test_a_wrong_option_gives_one_clear_line(capsys, arguments, message):
    assert_refused(capsys, [str(EXAMPLE), *arguments], message)


def test_a_scale_needs_scales():
    with pytest.raises(ValueError, match="no scales to choose 'n' from"):
        example.DetectionModel(TINY, "n")
