"""The fastest candidate is measured, remembered, and a failing one left out."""

import time

import pytest
import torch

from hsidenoise.models.attention import fastest as module
from hsidenoise.models.attention.fastest import fastest


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(module, "_winners", {})


def runner(seconds, calls):
    def run(name, x):
        calls.append((name, x.requires_grad))
        time.sleep(seconds[name])
        return x * 2.0

    return run


def test_the_fastest_wins_and_is_remembered():
    calls = []
    run = runner({"slow": 0.02, "fast": 0.0}, calls)
    x = torch.ones(5, 7)
    assert fastest(["slow", "fast"], run, [x]) == "fast"
    measured = len(calls)
    assert fastest(["slow", "fast"], run, [torch.zeros(6, 7)]) == "fast"  # as large but for a factor below two
    assert len(calls) == measured
    for other in (torch.ones(50, 7), torch.ones(5, 8), x.double()):
        fastest(["slow", "fast"], run, [other])
        assert len(calls) > measured
        measured = len(calls)
    fastest(["slow", "fast"], run, [x], kind="another")
    assert len(calls) > measured


def test_gradients_are_measured_where_they_are_wanted():
    calls = []
    run = runner({"one": 0.0, "two": 0.0}, calls)
    x = torch.ones(5, 7, requires_grad=True)
    fastest(["one", "two"], run, [x])
    assert all(wanted for _, wanted in calls)
    assert x.grad is None
    calls.clear()
    with torch.no_grad():
        fastest(["one", "two"], run, [x])
    assert calls
    assert not any(wanted for _, wanted in calls)


def test_a_failing_candidate_is_left_out_with_one_warning():
    def run(name, x):
        if name == "broken":
            raise RuntimeError("no such kernel\nand much more")
        return x

    x = torch.ones(3)
    with pytest.warns(RuntimeWarning, match="'broken' fails here and is left out: no such kernel$") as caught:
        assert fastest(["sound", "broken"], run, [x]) == "sound"
    assert len(caught) == 1
    assert fastest(["sound", "broken"], run, [x]) == "sound"  # remembered: filterwarnings=error would raise
    with pytest.raises(RuntimeError, match="no such kernel"):
        fastest(["broken", "sound"], run, [x])


def test_no_candidate_is_an_error():
    with pytest.raises(ValueError, match="no candidate"):
        fastest([], lambda name: torch.zeros(1), [])
