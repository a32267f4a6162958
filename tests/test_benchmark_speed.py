"""The plan, and cells in processes of their own: rounds, failures, ratios."""

import dataclasses

import pytest

from hsidenoise.benchmark_speed import JOBS, SIZES, TRAIN_BATCH, TRAIN_SIZE, _rows, plan, run
from hsidenoise.speed_cell import FORWARD_VARIANTS, TRAIN_VARIANTS, Cell, Measurement
from hsidenoise.speed_networks import NETWORKS

RATES = {"float32": 1e11, "bfloat16": 4e11}


def test_everything_is_planned_with_the_reference_first():
    groups = plan()
    cells = [cell for group in groups for cell in group]
    assert len(set(cells)) == len(cells)
    assert {cell.network for cell in cells} == set(NETWORKS)
    assert {cell.job for cell in cells} == set(JOBS)
    assert {cell.size for cell in cells if cell.job == "forward"} == set(SIZES)
    assert {(cell.size, cell.batch) for cell in cells if cell.job == "train"} == {(TRAIN_SIZE, TRAIN_BATCH)}
    assert {cell.variant for cell in cells if cell.network == "hcanet" and cell.job == "forward"} == set(
        FORWARD_VARIANTS
    )
    assert {cell.variant for cell in cells if cell.job == "train"} == set(TRAIN_VARIANTS)
    for group in groups:
        assert len({(cell.job, cell.network, cell.size) for cell in group}) == 1
        assert "released" not in [cell.variant for cell in group[1:]]
        assert (group[0].variant == "released") == (NETWORKS[group[0].network].as_released is not None)
    # those that are compared with the released HCANet come after it
    assert list(NETWORKS).index("hcanet") == 0


def test_a_part_can_be_chosen():
    assert plan(["hcanet-bra"], [96, 40], ["bfloat16", "float32"], ["forward"], batch=3) == [
        [Cell("forward", "hcanet-bra", variant, size, 3) for variant in ("float32", "bfloat16")] for size in (96, 40)
    ]
    assert plan(["bra"], jobs=["train"]) == []
    assert plan(["hcanet"], jobs=["train"], variants=["onnxruntime"]) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"networks": ["bra", "hcanot"]}, "unknown network 'hcanot'; known: hcanet, bra"),
        ({"variants": ["float64"]}, "unknown variant 'float64'; known: released"),
        ({"jobs": ["test"]}, "unknown job 'test'; known: forward, train"),
        ({"sizes": [64, 0]}, "sizes 64, 0 and batch 1 must be 1 or more"),
        ({"batch": 0}, "and batch 0 must be 1 or more"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_wrong_plan_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan(**arguments)


@pytest.mark.parametrize("arguments", [{"rounds": 0}, {"seconds": 0.0}])
def test_a_wrong_run_is_refused(arguments):
    with pytest.raises(ValueError, match="must be 1 or more and seconds"):
        run([], **arguments)


def test_a_device_that_is_not_there_is_said():
    with pytest.raises(RuntimeError, match="unknown device 'gpu0'"):
        run(plan(["bra"], [16], ["float32"]), device="gpu0")


def test_cells_are_measured_in_turn_and_compared():
    lines = []
    groups = plan(["bra"], [32], ["released", "float32"], ["forward"])
    done = run(groups, threads=1, device="cpu", rounds=2, seconds=0.05, progress=lines.append)
    assert [line.split(",")[1].split(":")[0].strip() for line in lines] == ["released", "float32"] * 2
    assert lines[-1].startswith("[2/2] round 2 of 2: forward bra 32x32, float32: ")
    assert (done.device, done.rounds, done.machine["threads"]) == ("cpu", 2, 1)
    released, ours = done.rows
    assert released.times_faster == 1
    assert ours.times_faster == pytest.approx(released.seconds / ours.seconds)
    assert ours.error < 1e-5
    assert ours.runs >= 2
    assert ours.fastest <= ours.seconds
    assert ours.rate_share == pytest.approx(ours.gflop * 1e9 / ours.seconds / done.rates["float32"])


def test_a_cell_that_fails_is_a_row_with_a_reason_and_not_repeated():
    lines = []
    groups = [[Cell("forward", "bra", "released", 20, 1)]]
    (row,) = run(groups, threads=1, device="cpu", rounds=2, progress=lines.append).rows
    assert row.reason == "routing attention as released takes sides in multiples of 8, not 20"
    assert row.seconds is None
    assert len(lines) == 1


def test_a_cell_that_takes_too_long_is_ended():
    (row,) = run(plan(["bra"], [16], ["float32"]), device="cpu", limit=0.1).rows
    assert row.reason == "stopped after 0.1 s"


def measured(seconds, **more):
    return Measurement(seconds=seconds, total=9_000_000, added=4_000_000, operations=2 * 10**9, **more)


def test_rounds_become_one_row():
    cell = Cell("forward", "hcanet", "bfloat16", 64, 1)
    (row,) = _rows({cell: [measured([3.0, 1.0], error=0.5, setup=7.0), measured([2.0])]}, RATES)
    assert (row.seconds, row.fastest, row.runs, row.setup, row.error) == (2.0, 1.0, 3, 7.0, 0.5)
    assert (row.peak_mb, row.added_mb) == (9.0, 4.0)
    assert (row.gflop, row.gflops) == (2.0, 1.0)
    assert row.rate_share == pytest.approx(1e9 / RATES["bfloat16"])
    assert row.times_faster is None


def test_a_round_that_fails_leaves_the_others():
    cell = Cell("forward", "hcanet", "float32", 64, 1)
    (row,) = _rows({cell: [measured([1.0]), Measurement(reason="out of memory")]}, RATES)
    assert (row.seconds, row.reason) == (1.0, "")


def test_the_reference_is_the_networks_own_or_hcanets():
    cells = {
        Cell("forward", "hcanet", "released", 64, 1): [measured([8.0])],
        Cell("forward", "bra", "released", 64, 1): [measured([6.0])],
        Cell("forward", "bra", "float32", 64, 1): [measured([2.0])],
        Cell("forward", "hcanet-bra", "float32", 64, 1): [measured([2.0])],
        Cell("forward", "hcanet-bra", "float32", 128, 1): [measured([2.0])],
        Cell("train", "hcanet", "released", 64, 8): [Measurement(reason="out of memory")],
        Cell("train", "hcanet", "float32", 64, 8): [measured([2.0])],
    }
    rows = _rows(cells, RATES)
    assert [row.times_faster for row in rows] == [1, 1, 3, 4, None, None, None]
    assert dataclasses.asdict(rows[0])["network"] == "hcanet"
