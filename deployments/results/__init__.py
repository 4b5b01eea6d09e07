"""Stores results and the working files of executions, on disk or in Blob Storage."""
