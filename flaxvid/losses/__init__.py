"""Losses: pure functions of what a network gives."""

from flaxvid.losses import classification, distillation, domain, masked, multitask

__all__ = ["classification", "distillation", "domain", "masked", "multitask"]
