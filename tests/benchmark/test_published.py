"""Published numbers: the file holds what was printed, each number with its source, and says what is wrong with it."""

import re

import pytest

from hsidenoise.benchmark import published
from hsidenoise.benchmark.published import published_lines, read_published
from hsidenoise.metrics.protocols import PROTOCOLS
from hsidenoise.noise.cases import NOISE_CASES

HEAD = "method,dataset,crop,protocol,case,psnr,ssim,sam,params_m,gflop,caveat,source"
GAUSSIAN = ("gaussian-30", "gaussian-50", "gaussian-70", "blind")
COMPLEX = ("non-iid", "stripe", "deadline", "impulse", "mixture")


@pytest.fixture
def write(tmp_path):
    def write(*lines, head=HEAD):
        path = tmp_path / "numbers.csv"
        path.write_text("\n".join([head, *lines, ""]), encoding="utf-8")
        return path

    return write


def test_every_number_has_a_source_and_known_names():
    rows = read_published()
    assert len(rows) > 80
    assert all(row.source for row in rows)
    assert {row.case for row in rows} == {*GAUSSIAN, *COMPLEX}
    assert {row.case for row in rows} <= set(NOISE_CASES)
    assert {row.protocol for row in rows} - {""} <= set(PROTOCOLS)
    assert all(10 < row.psnr < 50 for row in rows)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("noisy", (18.59, 14.15, 11.23, 17.34, 18.25, 17.80, 17.61, 14.80, 14.08)),
        ("QRNN3D", (42.22, 40.15, 38.30, 41.37, 42.79, 42.35, 42.23, 39.23, 38.25)),
        ("SERT", (43.99, 41.82, 40.28, 43.20, 44.10, 43.80, 43.55, 40.56, 39.25)),
        ("HSDT-L", (44.31, 42.09, 40.59, 43.59, 44.94, 44.69, 44.55, 42.02, 41.07)),
    ],
)
def test_the_numbers_are_those_printed(name, values):
    (line,) = published_lines([name])
    assert tuple(line.scores[case] for case in (*GAUSSIAN, *COMPLEX)) == values


def test_the_noisy_row_under_two_protocols():
    rows = [row for row in read_published() if (row.method, row.case) == ("noisy", "gaussian-30")]
    assert {row.protocol: (row.ssim, row.sam) for row in rows} == {"hsir": (0.110, 0.807), "sert": (0.552, 37.9)}


def test_cost_and_order():
    sert, qrnn = published_lines(["SERT", "QRNN3D"], cases=["blind"])
    assert (sert.label, sert.parameters, sert.gflop) == ("SERT", 1_910_000, 1019.0)
    assert (qrnn.parameters, qrnn.scores) == (860_000, {"blind": 41.37})


def test_mafnet_is_marked():
    (line,) = published_lines(["MAFNet"])
    assert line.label == "MAFNet (own crop and metric)"
    assert {row.protocol for row in read_published() if row.method == "MAFNet"} == {"mafnet"}


def test_all_lines_that_have_the_cases():
    complex_ones = [line.label for line in published_lines(cases=["mixture"])]
    assert "BM4D" not in complex_ones
    assert complex_ones[0] == "noisy"
    assert "BM4D" in [line.label for line in published_lines()]
    assert published_lines(["BM4D"], cases=["mixture"]) == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ["SERTT"]}, "'SERTT' on ICVL; there are: noisy, BM4D"),
        ({"dataset": "Pavia"}, "data set 'Pavia'; there are: ICVL"),
    ],
)
def test_unknown_names(arguments, message):
    with pytest.raises(ValueError, match=message):
        published_lines(**arguments)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("SERT,ICVL,,,blind,43.20,,,,,,", "line 2: the column 'source' is empty"),
        ("SERT,ICVL,,,blind,,,,,,,SERT", "line 2: the column 'psnr' is empty"),
        ("SERT,ICVL,,,blind,fine,,,,,,SERT", "line 2, psnr: 'fine' is not a number"),
        ("SERT,ICVL,,,blind,43.2,nan,,,,,SERT", "line 2, ssim: 'nan' is not a number"),
        ("SERT,ICVL", "line 2: the column 'case' is empty"),
    ],
)
def test_bad_rows(write, line, message):
    path = write(line)
    with pytest.raises(ValueError, match=re.escape(f"{path}, {message}")):
        read_published(path)


def test_bad_files(write, tmp_path):
    with pytest.raises(ValueError, match="the column 'source' is missing"):
        read_published(write("SERT,ICVL", head="method,dataset,crop,protocol,case,psnr,ssim,sam,params_m,gflop,caveat"))
    row = "SERT,ICVL,,,blind,{},,,,,,SERT"
    with pytest.raises(ValueError, match="'SERT' has two PSNR for 'blind'"):
        read_published(write(row.format(43.2), row.format(43.3)))
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a CSV file in UTF-8"):
        read_published(binary)
    with pytest.raises(OSError, match=r"nowhere\.csv"):
        read_published(tmp_path / "nowhere.csv")


def test_several_sources_and_a_file_of_ones_own(write):
    path = write("X,Pavia,,,blind,30,,,1.5,,,paper A", "X,Pavia,,,mixture,20,,,,7,,paper B")
    (line,) = published_lines(dataset="Pavia", path=path)
    assert (line.source, line.parameters, line.gflop) == ("paper A; paper B", 1_500_000, 7.0)


def test_an_installed_package_asks_for_the_file(monkeypatch, tmp_path):
    monkeypatch.setattr(published, "_HERE", tmp_path / "published.csv")
    with pytest.raises(OSError, match="name the file"):
        read_published()
