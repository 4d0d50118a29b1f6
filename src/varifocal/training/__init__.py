"""Training a tuner, and knowing its cost beforehand."""
