"""The family of 3-D UNets: ModelScope, Zeroscope, VideoCrafter2, T2V-Turbo and the embedded model."""
