"""Damaged files of every kind that is read: taken, or refused in one line; see tests/fuzz.py for the long form."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_inputs import INPUTS

SCRIPT = Path(__file__).with_name("fuzz.py")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="counts on fork, /proc and limits of Linux"),
]


SLOW = ["v73", "netcdf", "zarr", "weights"]  # each read starts a process, or is many files, or denoises


@pytest.mark.parametrize(("readers", "count"), [([name for name in INPUTS if name not in SLOW], 300), (SLOW, 60)])
def test_damaged_files_are_read_or_refused_in_one_line(readers, count, tmp_path):
    # in a process of its own: without the checks of annotations, which a user does not have either
    command = [sys.executable, str(SCRIPT), "--count", str(count), "--keep", str(tmp_path)]
    command += [word for reader in readers for word in ("--reader", reader)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.findall(r"^(\w+) +(\d+) mutations: (\d+) accepted, (\d+) refused", done.stdout, re.M)
    assert [(reader, int(total)) for reader, total, *_ in found] == [(reader, count) for reader in readers]
    # a reader that refuses everything, or takes everything, is not tested by this
    assert all(min(int(accepted), int(refused)) > 5 for *_, accepted, refused in found), done.stdout


BAD_READER = """
import json, os, signal, tempfile, time
from pathlib import Path
import fuzz

def bad(path):
    number = int(path.read_bytes()[:9])
    if number == 1: raise KeyError
    if number == 2: os.kill(os.getpid(), signal.SIGSEGV)
    if number == 3: bytearray(8 << 30)
    if number == 4: bytearray(b"x") * (90 << 20)
    if number == 5: raise ValueError
    while number == 6: time.sleep(0.01)
    if number == 7: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM]), time.sleep(99)

fuzz.SECONDS, fuzz.RESIDENT = 1, 60 << 20
fuzz.READERS["v4"], fuzz.mutated = bad, lambda reader, seed: {"a": b"%d" % seed}
with tempfile.TemporaryDirectory() as folder:
    print(json.dumps([kind for _, kind, _ in fuzz.outcomes("v4", range(9), Path(folder))]))
"""


def test_the_script_sees_crashes_hangs_and_memory_and_goes_on():
    command = [sys.executable, "-c", BAD_READER]
    done = subprocess.run(command, cwd=SCRIPT.parent, capture_output=True, text=True, timeout=99)
    assert done.returncode == 0, done.stderr
    expected = "accepted, KeyError, crash SIGSEGV, MemoryError, memory, refused, hang, hang, accepted"
    assert json.loads(done.stdout) == expected.split(", ")
