"""Predict what a run needs before weights load: memory, disk space, messages, arithmetic and time.

The real networks run on meta tensors, which have shapes but no data (docs/decisions/0007-plans-by-tracing.md).
"""
