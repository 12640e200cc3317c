"""Videos to batches: sources, decoding, sampling, augmentation, the Grain pipeline and the embedded data set.

Nothing here starts a JAX backend, so that it may run in worker processes.
"""
