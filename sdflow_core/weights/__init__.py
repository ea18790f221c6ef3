"""Weights of models: where they are kept and what is known about them."""
