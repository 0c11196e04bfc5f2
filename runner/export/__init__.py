"""Writes a pipeline in the form that another system runs it in, without the runner."""
