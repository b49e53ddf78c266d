"""Measures of long videos that need no weights, streamed in bounded memory, and comparisons of videos.

extras       packages that only this part needs, imported when they are used
subject      a video and what its run knows of it: borders, prompts, settings
picture      a frame and what several measures derive from it
differences, appearance, motion, cuts, repetition    the measures
consistency  VBench's measures by CLIP and DINO, from weights on disk
statistics   trends, intervals, paired tests
figures      every figure, declared once: its name, unit, meaning, and which way is better
evaluate     a video through all measures, in one pass
limits       limits on figures, for filtering batches
compare      several videos against each other
report       what the command prints
page         the report as one HTML file
"""
