from types import SimpleNamespace

import pytest

from hsidenoise.training import budget
from hsidenoise.training.budget import Part, seconds_spent


@pytest.mark.parametrize("limits", [{"steps": 0}, {"minutes": 0.0}, {"minutes": -1.0}])
def test_a_part_takes_something(limits):
    with pytest.raises(ValueError, match="must be above 0"):
        Part(**limits)


def trainer(step=0):
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=0))
    return SimpleNamespace(global_step=step, should_stop=False, world_size=1, sanity_checking=False, fit_loop=loop)


@pytest.mark.usefixtures("unchecked")  # of Lightning's trainer a part needs four attributes
def test_steps_are_counted_from_where_the_part_began():
    part, run = Part(steps=3), trainer(step=40)
    part.on_train_start(run, None)
    for step, stop in ((41, False), (42, False), (43, True)):
        run.global_step = step
        part.on_train_batch_end(run, None, None, None, 0)
        assert run.should_stop == stop


@pytest.mark.usefixtures("unchecked")
def test_minutes_leave_time_for_the_validation_that_ends_them(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(budget.time, "monotonic", lambda: now[0])
    part, run = Part(minutes=10), trainer()
    part.on_train_start(run, None)
    now[0] = 100.0
    part.on_validation_start(run, None)
    now[0] = 160.0
    part.on_validation_end(run, None)
    now[0] = 539.0
    part.on_train_batch_end(run, None, None, None, 0)
    assert not run.should_stop
    now[0] = 540.0
    part.on_train_batch_end(run, None, None, None, 0)
    assert run.should_stop


def test_what_was_spent_without_a_budget_does_not_count():
    assert seconds_spent({"callbacks": {}}) == 0
    assert seconds_spent({"callbacks": {"Timer": {"time_elapsed": {"train": 12.5, "validate": 3}}}}) == 12.5
