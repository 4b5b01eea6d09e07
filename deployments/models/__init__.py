"""Loads a model on a GPU, rolls out one member at a time, and hands over each step."""
