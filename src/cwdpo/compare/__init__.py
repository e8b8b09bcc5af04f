"""Compare methods on the same data: a grid of methods, settings and seeds, and one table with its errors."""
