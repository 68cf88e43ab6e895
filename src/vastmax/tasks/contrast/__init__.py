"""Contrastive learning: two views of one thing belong together."""
