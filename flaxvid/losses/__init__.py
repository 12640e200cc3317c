"""Losses: pure functions of logits."""

from flaxvid.losses import classification, distillation, multitask

__all__ = ["classification", "distillation", "multitask"]
