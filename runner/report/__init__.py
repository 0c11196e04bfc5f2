"""The report of a run, one HTML page; and the card of a model, in the format of the Hugging Face hub."""
