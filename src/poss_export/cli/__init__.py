"""The command line, a file a command; `main.py` brings them together."""
