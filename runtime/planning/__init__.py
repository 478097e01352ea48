"""What a round proposes: chosen anew each time, from measured costs and estimated chances."""
