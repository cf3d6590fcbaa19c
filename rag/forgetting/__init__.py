"""Forgetting: what fine-tuning changed in the general abilities of a base model."""
