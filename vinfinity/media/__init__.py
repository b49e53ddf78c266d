"""From frames to files: MP4s, contact sheets, and the checks of what a run will write."""
