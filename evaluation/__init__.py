"""What is measured of a bundle: laws, equality, distribution, widths, text quality, metrics, latency."""
