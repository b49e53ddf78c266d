"""The drawn figures, plots and tables of the documentation: `python -m scripts.figures`."""
