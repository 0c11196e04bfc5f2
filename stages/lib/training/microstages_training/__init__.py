"""Training of LoRA and QLoRA adapters: what the stages train-lora and train-qlora share."""

__version__ = "0.1.0"
