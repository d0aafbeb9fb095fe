"""Figures: commands that print what the README and the notes claim. Not part of the test run."""
