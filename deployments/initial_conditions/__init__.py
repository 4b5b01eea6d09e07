"""Fetches initial conditions from a data source into a file."""
