"""Methods: a paper each, as a paragraph of stages."""
