"""What a run leaves behind beside its video, and how a later one goes on from it (docs/runs.md).

folder       NAME.run: record, settings, events, lock      parts        tensors of all frames, in a file for each rank
start        whether a run starts, goes on or is done      checkpoints  when to keep the state, and finding it again
opening      the beginning of a run on all its ranks       edit         which frames are computed, and which stay
"""
