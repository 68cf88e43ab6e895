"""What tells a user which head to take: comparisons on their own data, and their report."""
