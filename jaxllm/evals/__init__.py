"""What a model is worth, measured: intervals first, then what it knows, remembers and makes up."""
