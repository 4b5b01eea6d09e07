"""Sends result files over HTTP: ranges, conditions, paths."""
