"""Objectives: pure functions of views of streams to a loss per example."""
