"""The configuration of a model: typed, strict, and what no graph of isodet holds."""
