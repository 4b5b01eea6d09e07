"""Describes results as STAC items and collections."""
