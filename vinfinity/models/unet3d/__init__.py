"""The 3-D UNet family: ModelScope, Zeroscope, VideoCrafter2, T2V-Turbo and the embedded model."""
