"""The floor that shows results: one offline HTML file, terminal tables, a model card. Imports no torch.

`schema` is the contract with the audit (`scores.json`); `html`, `terminal` and `card` render it; `view` answers the
questions they share, `summary` tells the findings in plain words, `svg` and `scatter` draw.
"""

from expunge.report.schema import Evidence, load

__all__ = ["Evidence", "load"]
