"""How fast, and against what: the method of timing, the machine's roofline, and cases and baselines of every op."""
