"""Serves result files over HTTP, from disk or Blob Storage: paths, ranges, preconditions."""
