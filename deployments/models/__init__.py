"""Load a model on a GPU, roll out one member at a time, and hand over each step."""
