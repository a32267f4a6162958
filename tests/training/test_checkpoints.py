import pytest
import torch

from hsidenoise.training.checkpoints import (
    AtomicCheckpoints,
    changed_options,
    find_checkpoint,
    read_checkpoint,
    seconds_spent,
)


class Unsaveable:
    """Fails while it is written, after what comes before it."""

    def __reduce__(self):
        raise OSError("no space left on device")


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path):
    writer, path = AtomicCheckpoints(), tmp_path / "folder" / "last.ckpt"
    writer.save_checkpoint({"step": torch.tensor(1)}, path)
    with pytest.raises(OSError, match="no space"):
        writer.save_checkpoint({"step": torch.tensor(2), "rest": Unsaveable()}, path)
    assert torch.load(path, weights_only=True)["step"] == 1
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a checkpoint"),
        (b"not a zip file at all", "cannot be read as a checkpoint"),
        ({"weight": torch.zeros(3)}, "not a checkpoint of `hsidenoise train`"),
    ],
)
def test_what_is_no_checkpoint_is_told_in_one_line(tmp_path, content, message):
    path = tmp_path / "last.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message) as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_find_checkpoint(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    assert find_checkpoint(folder, None) is None
    assert find_checkpoint(folder, "auto") is None
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        find_checkpoint(folder, "last")
    folder.mkdir(parents=True)
    last, other = folder / "last.ckpt", tmp_path / "other.ckpt"
    last.touch()
    other.touch()
    assert find_checkpoint(folder, "auto") == find_checkpoint(folder, "last") == last
    assert find_checkpoint(folder, str(other)) == other
    with pytest.raises(ValueError, match="already holds a run"):
        find_checkpoint(folder, None)


def test_changed_options_are_those_that_matter():
    saved = {
        "hyper_parameters": {"model": "hcanet", "bands": 31, "betas": (0.9, 0.999), "learning_rate": 1e-3, "old": 1},
        "datamodule_hyper_parameters": {"root": "/a", "workers": 4, "batch_size": 4, "scales": [1.0, 0.5]},
    }
    model = {"model": "hcanet", "bands": 31, "betas": [0.9, 0.999], "learning_rate": 1e-3, "new": 2}
    data = {"root": "/b", "workers": 0, "batch_size": 8, "scales": (1.0, 0.5)}
    assert changed_options(saved, model, data, path="x") == ["data.batch_size 4, now 8"]
    assert changed_options({"hyper_parameters": {}}, model, data, path="x") == []  # written before options were kept
    with pytest.raises(ValueError, match=r"x: of another network \(model\.bands 31, now 5\)"):
        changed_options(saved, model | {"bands": 5}, data, path="x")


def test_what_was_spent_without_a_budget_does_not_count():
    assert seconds_spent({"callbacks": {}}) == 0
    assert seconds_spent({"callbacks": {"Timer": {"time_elapsed": {"train": 12.5, "validate": 3}}}}) == 12.5
