"""From files of questions and pictures to packed rows of tokens."""
