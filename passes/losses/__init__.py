"""Losses of distillation, one file a family."""
