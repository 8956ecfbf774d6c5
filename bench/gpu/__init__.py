"""What a GPU reaches, in one command: kernels, training, longest sequence, other trainers. See ``__main__``."""
