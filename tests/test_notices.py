"""Notices of other libraries that no user can do anything about stay off the screen."""

import logging

import pytest

import varifocal  # noqa: F401 - its import hushes them

KERNEL = "bitsandbytes.backends.cpu.ops"
CAST = "bitsandbytes.autograd._functions"


def heard(name, message, *args):
    record = logging.LogRecord(name, logging.WARNING, "ops.py", 1, message, args, None)
    return bool(logging.getLogger(name).filter(record))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (KERNEL, "Failed to load CPU gemm_4bit_forward from kernels-community: %s."),
        (CAST, "MatMul8bitLt: inputs will be cast from %s to float16 during quantization"),
    ],
)
def test_only_the_known_notice_is_left_out(name, message):
    assert not heard(name, message, "no module")
    assert heard(name, "Something else: %s", message)
    assert heard("bitsandbytes", message, "no module")


def test_hushing_twice_filters_once():
    from varifocal.registration import hush

    before = list(logging.getLogger(KERNEL).filters)
    hush()
    assert logging.getLogger(KERNEL).filters == before
    assert len(before) == 1
