"""Parses and checks everything under ``args``."""
