"""`python -m expunge`, for launchers."""

from expunge.cli import entry

entry()
