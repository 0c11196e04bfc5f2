"""The stage `infer`: a model in any form answers prompts; how well and how fast is measured."""

__version__ = "0.1.0"
