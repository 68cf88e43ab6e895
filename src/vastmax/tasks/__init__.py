"""Small real models and their training, to measure heads by."""
