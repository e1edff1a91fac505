"""One small program per system, each run with the Python of that system's own environment.

Run as `python -m drivers.NAME JOB`, with the folder above this one on the path and no kvstore to import: the systems
pin versions that clash with ours. Only `drivers.ours` imports kvstore.
"""
