"""Compares finished runs: paired tests on the same samples, configs, curves, analyses.

Everything is read from the folders of the runs; no model is loaded, and torch is not needed.
"""
