"""Servers that stand in for Azure, and the credentials that they take."""
