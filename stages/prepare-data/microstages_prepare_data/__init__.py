"""prepare-data: rows of text become token sequences that a model can be trained on."""

__version__ = "0.1.0"
