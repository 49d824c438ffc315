"""Evaluation with several views of each picture."""
