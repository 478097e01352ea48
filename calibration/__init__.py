"""Calibration samples and quantised graphs (their own issue; empty until then)."""
