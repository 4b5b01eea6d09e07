"""Loads a model on a GPU, computes one member at a time and hands over each step."""
