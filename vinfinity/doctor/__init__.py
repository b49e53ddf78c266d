"""`vinfinity doctor`: what is on this machine, what a run would use of it, and what is wrong.

facts   everything that was found        faults  what is wrong with it, and the remedy
report  both on one screen, and as JSON
"""
