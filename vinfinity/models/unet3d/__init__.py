"""The family of 3-D UNets: ModelScope, Zeroscope, VideoCrafter2 and their like."""
