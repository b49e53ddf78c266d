"""Take the denoising steps one by one, and decode a preview half-way."""

import vinfinity

pipe = vinfinity.Pipeline.from_pretrained("mini", device="cpu")
for state in pipe.denoise("a blue boat moving right", frames=16, steps=8, seed=7):
    print(f"step {state.step}: latents {tuple(state.x.shape)}, deviation {state.x.std():.2f}")
    if state.step == 4:
        pipe.decode(state).save("preview.mp4", overwrite=True)
pipe.decode(state).save("final.mp4", overwrite=True)
