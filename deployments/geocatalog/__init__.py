"""Registers one STAC item in a GeoCatalog."""
