"""What a run leaves behind beside its video, and how a later one goes on from it (docs/runs.md).

files        files that appear whole or not at all        parts        tensors of all frames, in a file for each rank
folder       NAME.run: record, settings, events, lock      checkpoints  when to keep the state, and finding it again
edit         parts of an earlier video that stay
"""
