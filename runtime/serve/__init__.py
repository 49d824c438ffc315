"""The HTTP server: `runtime serve`. Needs the extra serve."""
