"""Parses and checks all settings, which stand under ``args`` of the application."""
