"""Side-by-side measurements. See README.md."""
