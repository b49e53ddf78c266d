"""Many videos in one go: weights are loaded once, finished videos are skipped, a failing one is passed over.

Top to bottom: a file of rows, each with settings of its own; rows times seeds as videos with names; all of them on the
same ranks; a journal of what became of them.

rows      the rows of a text file, YAML, JSON lines or CSV
names     file names from a template
plan      rows and seeds as videos, checked before torch is loaded; the part that this process makes
journal   what became of each video, on disk
make      the videos, one after the other
"""
