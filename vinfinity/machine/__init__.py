"""What this machine is: probes of its hardware, drivers and libraries that neither raise nor hang.

probe   how a probe is guarded     host    processor, memory, folders, network
nvidia  GPUs, from the driver      engine  torch and what it can use
video   FFmpeg's encoders          record  what a run writes about the machines of its ranks
"""
