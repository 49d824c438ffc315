"""Files that are written whole or not at all, HTML pages, and YAML of strangers."""
