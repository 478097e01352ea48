"""Quantised graphs: where they multiply, what reaches it, what is decided, and how it is written."""
