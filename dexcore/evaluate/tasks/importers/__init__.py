"""Importers: what others call a labelled data set becomes one table; no image is changed."""
