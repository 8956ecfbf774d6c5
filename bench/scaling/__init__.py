"""What a step costs against the sequence length and against ranks. See ``__main__``."""
