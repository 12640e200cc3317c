"""Losses: pure functions of logits."""

from flaxvid.losses import classification, distillation

__all__ = ["classification", "distillation"]
