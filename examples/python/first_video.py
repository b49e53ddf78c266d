"""Generate a video with the embedded model and save it."""

import vinfinity

video = vinfinity.generate("a red ball bouncing over green grass", frames=24, steps=10, seed=7)
print(video.frames.shape, video.latents.shape, video.fps)
video.save("first_video.mp4", overwrite=True)
