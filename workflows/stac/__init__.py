"""Describes results as STAC items and collections: plain JSON values, without pystac."""
