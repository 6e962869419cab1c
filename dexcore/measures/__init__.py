"""Arithmetic on arrays, each formula once: no model, no image, no file. What they say of a model is told above."""
