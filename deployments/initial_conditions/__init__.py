"""Fetches an analysed state into a file."""
