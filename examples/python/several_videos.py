"""Load the weights once, then generate several videos."""

import vinfinity

pipe = vinfinity.Pipeline.from_pretrained("mini", device="cpu")
for colour in ("red", "blue"):
    video = pipe(f"a {colour} boat moving right", frames=16, steps=8)
    print(video.save(f"{colour}_boat.mp4", overwrite=True))
