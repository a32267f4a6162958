"""Figures arrive in the CSV and on the page, and the bars are judged rightly."""

import csv
import dataclasses
import io

import pytest

from hsidenoise.benchmark_speed import Row, SpeedRun
from hsidenoise.machine import describe_machine
from hsidenoise.speed_table import HSDT_M_GFLOP, bars, to_csv, to_markdown

RELEASED = Row(
    "forward", "hcanet", "released", 512, 1, 160.0, 159.0, 1, 1.0, 5300.0, 5000.0, 0.0, 708.1, 4.4, 0.05, None, None
)
OURS = Row(
    "forward", "hcanet", "float32", 512, 1, 20.0, 19.5, 3, 8.0, 1200.0, 900.0, 0.0, 588.2, 29.4, 0.36, 5e-7, 7e-7
)
COMPILED = dataclasses.replace(
    OURS, variant="compile-bfloat16", seconds=10.0, times_faster=16.0, error=0.002, rms_error=0.006, setup=61.2
)
BROKEN = Row("forward", "hcanet", "onnxruntime", 512, 1, reason="out of memory")
ROWS = (RELEASED, OURS, COMPILED, BROKEN)


def line(rows, start):
    found = [one for one in bars(rows) if one.startswith(start)]
    assert len(found) == 1
    return found[0]


def test_the_csv_holds_every_row_with_all_digits():
    rows = list(csv.DictReader(io.StringIO(to_csv(ROWS))))
    assert [row["variant"] for row in rows] == [row.variant for row in ROWS]
    assert list(rows[0]) == [field.name for field in dataclasses.fields(Row)]
    assert float(rows[1]["rms_error"]) == 7e-7
    assert rows[3]["seconds"] == ""
    assert rows[3]["reason"] == "out of memory"


def test_the_page_says_where_how_and_what():
    machine = describe_machine()
    done = SpeedRun(machine.as_dict(), "cpu", {"float32": 90e9, "bfloat16": 635e9}, 2, ROWS)
    page = to_markdown(done, command="hsidenoise benchmark speed --rounds 2", commit="abc1234", date="2026-01-02")
    assert "Measured on 2026-01-02, commit abc1234, by `hsidenoise benchmark speed --rounds 2`." in page
    assert f"Machine: {machine.sentence()}; computed on cpu." in page
    assert "A product of large square matrices reaches float32 90 GFLOP/s, bfloat16 635 GFLOP/s." in page
    assert "## hcanet: HCANet of the paper's size" in page
    assert "### Forward, 512x512 pixels, batch 1" in page
    assert "| released | 160 | 159 | 1.00 | 5300 | 5000 | 708.1 | 4.4 | 5% |  |  | 1 |" in page
    assert "| float32 | 20 | 19.5 | 8.00 | 1200 | 900 | 588.2 | 29.4 | 36% | 5.0e-07 | 7.0e-07 | 3 |" in page
    assert "`onnxruntime` was not measured: out of memory." in page
    assert "`compile-bfloat16` compiled for 61 s first." in page
    tables = [one for one in page.splitlines() if one.startswith("|")]
    assert len({one.count("|") for one in tables}) == 1


def test_networks_and_sizes_have_tables_of_their_own():
    rows = (OURS, dataclasses.replace(OURS, size=64), dataclasses.replace(OURS, network="bra", job="train", batch=8))
    done = SpeedRun(describe_machine().as_dict(), "cpu", {"float32": 1e9}, 1, rows)
    headings = [one for one in to_markdown(done, command="", commit="", date="").splitlines() if one.startswith("###")]
    assert headings == [
        "### Forward, 512x512 pixels, batch 1",
        "### Forward, 64x64 pixels, batch 1",
        "### Training step, 512x512 pixels, batch 8",
    ]


def test_hcanets_bars():
    assert line(ROWS, "HCANet 512x512, float32:") == (
        "HCANet 512x512, float32: 8.0 times faster (bar: 5 times faster than as released; met)."
    )
    assert "5.0e-07 (bar: at most 0.0001; met)" in line(ROWS, "HCANet 512x512, float32, error:")
    assert "1200 MB (bar: 1500 MB at most; met)" in line(ROWS, "HCANet 512x512, float32, peak:")
    assert line(ROWS, "HCANet 512x512, compile-bfloat16, error 2.0e-03, rms 6.0e-03:").endswith(
        "16.0 times faster (bar: 10 times faster than as released; met)."
    )
    slow = dataclasses.replace(OURS, times_faster=4.9, peak_mb=1600.0, error=2e-4)
    for start in ("HCANet 512x512, float32:", "HCANet 512x512, float32, peak:", "HCANet 512x512, float32, error:"):
        assert line((RELEASED, slow), start).endswith("**not met**).")


@pytest.mark.parametrize(("gflop", "verdict"), [(14.3, "met"), (HSDT_M_GFLOP / 2, "**not met**")])
def test_the_bar_of_the_default_network(gflop, verdict):
    row = dataclasses.replace(OURS, network="hcanet-bra", size=128, gflop=gflop)
    assert line([row], "Default HCANetBRA").endswith(f"of it (bar: 0.3333 of it at most; {verdict}).")


@pytest.mark.parametrize(("network", "heads"), [("bra", "8 heads"), ("bra-1-head", "1 head")])
@pytest.mark.parametrize(("times", "added", "verdict"), [(4.5, 900.0, "; met"), (3.9, 1100.0, "**not met**")])
def test_the_bars_of_routing_attention(network, heads, times, added, verdict):
    explicit = dataclasses.replace(RELEASED, network=network, size=256)
    ours = dataclasses.replace(OURS, network=network, size=256, times_faster=times, added_mb=added)
    assert verdict in line([explicit, ours], f"Routing attention 256x256, {heads}, float32:")
    assert verdict in line([explicit, ours], f"Routing attention 256x256, {heads}, float32, memory added:")


def test_the_bar_of_training_takes_the_faster_precision():
    step = dataclasses.replace(OURS, job="train", network="hcanet-bra-48", size=64, batch=8)
    steps = [
        dataclasses.replace(step, variant=name, times_faster=times)
        for name, times in (("float32", 6.0), ("bfloat16", 9.0))
    ]
    assert "bfloat16: 9.0 times faster (bar: 8 times" in line(steps, "Training step of HCANetBRA")
    assert "float32: 6.0 times faster (bar: 8 times" in line(steps[:1], "Training step of HCANetBRA")


def test_what_was_not_measured_is_said():
    assert all(": not measured (bar: " in one for one in bars([BROKEN]))
