"""Measures of long videos that need no weights, streamed in bounded memory, and comparisons of videos.

extras       packages that only this part needs, imported when they are used
subject      a video and what its run knows of it: borders, prompts, settings
groups       which videos are compared with which
figures      every figure, declared once: its name, unit, meaning, and which way is better
result       what was measured of a video
statistics   trends, intervals, paired tests
api          `vinfinity.evaluate` and `vinfinity.compare`

These import OpenCV or PySceneDetect, and are imported once both are known to be there:

picture      a frame and what several measures derive from it
differences, appearance, motion, cuts, repetition    the measures
consistency  VBench's measures by CLIP and DINO, from weights on disk
evaluate     a video through all measures, in one pass
compare      several videos against each other
preview      small copies and thumbnails for the report
page         the report as one HTML file
report       what the commands print
limits       limits on figures, for filtering batches
"""
