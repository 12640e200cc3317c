"""The zoo: one file a family. `create_model` makes any of them by name."""
