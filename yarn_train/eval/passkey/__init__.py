"""Passkey retrieval (section 4.3.2 of the YaRN paper): a number hidden in a long text, asked for at its end."""
