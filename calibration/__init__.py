"""Calibration: samples of real rounds, their replay, and what a drafter's scores are worth."""
