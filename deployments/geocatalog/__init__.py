"""Registers one result as an item of a STAC catalogue in Planetary Computer Pro."""
