"""``foveate eval fidelity``: how far a method moves a model's next-token distributions, on anybody's images, without labels."""
