"""Share a video over several processes: one per GPU, or on the CPU as here."""

import vinfinity

video = vinfinity.generate("a red ball bouncing over green grass", frames=24, steps=6, gpus=2, device="cpu")
print(video)
video.save("several_gpus.mp4", overwrite=True)
