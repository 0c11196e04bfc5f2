"""The stage `merge`: an adapter and its base model become one model, tensor by tensor."""

__version__ = "0.1.0"
