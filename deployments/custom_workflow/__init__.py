"""Runs a user's own workflow class and delivers what it leaves in its folder."""
