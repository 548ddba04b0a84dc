"""Skin-lesion classification on HAM10000 with Ray Data, Ray Train and Ray Tune."""

__version__ = "0.1.0"
