"""Work on a machine that has a GPU and no network: everything goes there and comes back in parts.

Not part of the installed package. `docs/offline.md` tells the steps.
"""
