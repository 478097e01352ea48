"""ONNX Runtime's quantiser is imported and nothing else changes; what it makes keeps nothing in memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from poss_export.quantisation.n_bits import n_bits_node

_WEIGHT = 16 << 20  # bytes


def test_nobody_elses_logging_changes() -> None:
    code = """
import logging
from poss_export.quantisation.n_bits import _n_bits_quantizer
_n_bits_quantizer()
assert not logging.getLogger().handlers and logging.getLogger().level == logging.WARNING
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_node_keeps_no_weight_in_memory() -> None:
    weight = np.random.default_rng(0).normal(size=(1024, _WEIGHT // 4096)).astype(np.float32)
    nodes = [n_bits_node("first", weight, 4)[0]]  # imports are no part of it
    before = _resident()
    nodes += [n_bits_node(f"weight-{number}", weight, 4)[0] for number in range(8)]
    assert {node.op_type for node in nodes} == {"MatMulNBits"}
    assert _resident() - before < 4 * _WEIGHT


def _resident() -> int:
    """Return the bytes of this process that are in memory and in no file."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))
