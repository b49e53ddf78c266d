"""From noise to latents: which frames, their noise, schedules, samplers, guidance, and the loop."""
