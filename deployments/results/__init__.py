"""Stores results and working files, on disk or in Blob Storage."""
