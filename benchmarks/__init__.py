"""Benchmarks of the server, as ratios where possible; ``make bench`` runs them."""
