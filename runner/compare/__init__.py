"""Forms of a model side by side: what `infer` measured of each on the same rows, as text, as JSON, and as a page."""
