"""Keeps other libraries' notices off the screen that no user of ours can do anything about."""

import logging

_BITSANDBYTES = {
    # At its import, PEFT's too: a kernel on the hub, for 4-bit weights that are packed anew, which
    # models/quantised.py never lets happen.
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    # At every look through every int8 layer: how LLM.int8 works.
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs will be cast",
}


def hush() -> None:
    """Leave out the notices above; anything else those libraries say is still heard."""
    for name, start in _BITSANDBYTES.items():
        logger = logging.getLogger(name)
        if not any(isinstance(known, _Without) for known in logger.filters):
            logger.addFilter(_Without(start))


class _Without(logging.Filter):
    """Lets pass every message that does not start with some words."""

    def __init__(self, start: str) -> None:
        super().__init__()
        self._start = start

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self._start)
