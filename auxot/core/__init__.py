"""Words: what every daemon says and means. Knows no daemon."""
