"""ONNX Runtime's quantiser is imported, and nothing else changes."""

import subprocess
import sys


def test_nobody_elses_logging_changes() -> None:
    code = """
import logging
from poss_export.quantisation.n_bits import _n_bits_quantizer
_n_bits_quantizer()
assert not logging.getLogger().handlers and logging.getLogger().level == logging.WARNING
"""
    subprocess.run([sys.executable, "-c", code], check=True)
