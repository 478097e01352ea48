"""Calibration: samples of real rounds, quantised graphs, and what they cost."""
