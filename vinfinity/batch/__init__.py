"""Many videos in one command: weights are loaded once, finished videos are skipped, and a failure does not end it.

A file has rows, each with settings of its own. Each row and seed gives a video with a name. The same ranks make all of
them, and a journal records the outcome of each.

rows      the rows of a text file, YAML, JSON lines or CSV
names     file names from a template
plan      rows and seeds as videos, checked before torch is loaded; the part that this process makes
journal   the outcome of each video, on disk
make      the videos, one after the other
faults    the faults of many rows, reported together
"""
