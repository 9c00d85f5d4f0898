"""The result store: what an experiment is, what its result says, and that every table is what its result says."""
