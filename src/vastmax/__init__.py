"""vastmax."""
