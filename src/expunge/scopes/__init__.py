"""Scopes: what may move."""
