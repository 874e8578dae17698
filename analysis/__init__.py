"""Runs into numbers and figures: metrics alone knows Trace, figures sees only DataFrames."""
