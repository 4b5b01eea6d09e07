"""Runs a user's own workflow class."""
