"""Every other row of the paper's tables."""
