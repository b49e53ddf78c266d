"""What a run will take, before weights load: memory, messages, arithmetic and time, from the real networks on tensors
without data.
"""
