"""Losses: pure functions of what a network gives."""

from flaxvid.losses import classification, distillation, masked, multitask

__all__ = ["classification", "distillation", "masked", "multitask"]
