"""The library that writes and reads results and working files, on disk or in Blob Storage."""
