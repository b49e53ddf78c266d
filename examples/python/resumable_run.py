"""Generate a video as the command line does: with checkpoints, so that it can be interrupted and resumed."""

import vinfinity

config = vinfinity.load_config(
    prompt="a red ball bouncing over green grass",
    frames=24,
    steps=8,
    out="resumable.mp4",
    resume=True,
    checkpoint={"every": "2 steps"},
)
print(vinfinity.generate_file(config) or "finished already")
