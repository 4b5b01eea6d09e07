"""Benchmarks of a served earth2serve, as ratios where it can be; ``make bench`` runs them."""
