"""Deployable speculative decoding: export a target and its drafter, build engines, run them lossless."""
