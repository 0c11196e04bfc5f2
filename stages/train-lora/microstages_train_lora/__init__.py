"""Stage train-lora: train a LoRA adapter on a base model."""

__version__ = "0.1.0"
