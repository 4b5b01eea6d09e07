"""Copies the files of one result into one Blob container."""
