"""Weights in and out.

`torch`: models and variables out of PyTorch checkpoints, and back. `tensors`: reading the files of others.
`native`: our own files. `known`: published files by name, `download` and `hub` fetch them.
"""
