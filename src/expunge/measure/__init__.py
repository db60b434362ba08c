"""Instruments: what is run on a model, once; everything else is derived from their tables."""
