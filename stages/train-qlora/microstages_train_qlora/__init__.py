"""Stage train-qlora: train a LoRA adapter on a base model quantized to 4 bits."""

__version__ = "0.1.0"
