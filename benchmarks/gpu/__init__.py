"""The parts of `gpu_check.py`: kernels, whether they agree, how fast methods are, and how long it may all take."""
