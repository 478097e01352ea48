"""The tables of precisions, from rows made by hand."""

import pytest

from benchmarks.divergences import count
from benchmarks.precision_report import print_rows
from tests.fixtures.bundle_row import bundle_row


def test_every_figure_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    peer = bundle_row(name="llama.cpp Q8_0", megabytes=145.0, to_reference=0.75)
    parted = {
        "q:1": {"position": 7, "gap": 1e-6, "verdict": "near-tie"},
        "q:2": {"position": 8, "gap": 1.0, "verdict": "mismatch"},
        "q:3": {"position": 9, "gap": 1.0, "verdict": "not claimed"},
    }
    rows = {"bundles": [bundle_row(divergences=parted)], "peers": [peer]}
    print_rows(rows, ["onnxruntime-genai int4"], 4)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[2][3:] == ["100", "20", "5.0", "10.0", "2", "0.50", "1.00", "3.0"]
    quality, speed = ["20.00", "0.0123", "95.0%"], ["50.0", "40.0-60.0"]
    assert lines[6][4:] == ["100", *quality, *speed, "1.00", "-", "-", "-"]
    assert lines[7][4:] == ["120", *quality, *speed, "1.00", "1.50", "2.25", "2/4"]
    assert lines[8] == ["llama.cpp", "Q8_0", "145", *quality, *speed, "0.75", "-", "-", "-"]
    assert lines[9] == ["onnxruntime-genai", "int4", "not", "installed"]
    assert [" ".join(line) for line in lines[10:]] == [
        "near-tie: int8 / w8a8, q:1, token 7, gap 1.00e-06",
        "MISMATCH: int8 / w8a8, q:2, token 8, gap 1.00e+00",
        "not claimed: int8 / w8a8, q:3, token 9, gap 1.00e+00",
        "4 speculative answers: 1 equal to target-only of their bundle, 1 near-ties, 1 mismatches, "
        "1 differ where nothing is claimed",
    ]
    assert count([parted], "mismatch") == 1
