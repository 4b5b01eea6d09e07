"""Parses and checks the settings: `args` of the application."""
