"""Certified robustness: what no attack within a threat model can bring down, whichever it is."""
