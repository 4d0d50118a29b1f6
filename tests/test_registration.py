"""`import varifocal` is light, and yet PEFT and transformers know its methods and models."""

import json
import logging
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires
from types import SimpleNamespace

import pytest

import varifocal
from varifocal.errors import ModelError
from varifocal.registration import (
    SUPPORTED,
    _AfterImport,
    _RegisteringLoader,
    check_versions,
    hush,
    register_on_import,
)

KNOWN = (
    "from peft import PeftType; assert 'MMA' in PeftType.__members__; "
    "from transformers import AutoConfig; assert AutoConfig.for_model('grafted')"
)


def run(code):
    """Run code in a process that has imported nothing."""
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_importing_varifocal_alone_imports_no_heavy_library():
    heavy = "{'torch', 'transformers', 'peft', 'numpy', 'pydantic', 'PIL'}"
    run(f"import sys, varifocal; assert not {heavy} & set(sys.modules), sys.modules")


ORDERS = (
    # transformers' Auto classes come in the middle of this import, half built.
    "import varifocal; from transformers.modeling_layers import GradientCheckpointingLayer",
    "import peft; import varifocal",
    # Own modules, the first that import transformers, which the registering ones import from.
    "from varifocal.models import PatchMLP",
    "from varifocal.models import grafted",
)

IN_FORKS = """
import json, os, sys, traceback
import torch  # once for all; it registers nothing
assert not {"peft", "transformers", "varifocal"} & set(sys.modules)
ends = []
for code in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        try:
            exec(code)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(ends))
"""


@pytest.fixture(scope="module")
def ends():
    """How each order ends in a process that has imported torch alone."""
    asked = json.dumps([f"{order}; {KNOWN}" for order in ORDERS])
    command = [sys.executable, "-W", "ignore", "-c", IN_FORKS, asked]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(zip(ORDERS, json.loads(done.stdout), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_methods_and_models_are_registered_whoever_imports_first(ends, order):
    assert ends[order] == 0


def test_who_registers_twice_is_asked_once():
    register_on_import()
    assert [type(finder).__name__ for finder in sys.meta_path].count("_AfterImport") == 1


def test_a_wrapped_loader_has_what_the_loader_has():
    loader = SimpleNamespace(get_code=lambda name: f"the code of {name}")
    assert _RegisteringLoader(loader, _AfterImport()).get_code("peft") == "the code of peft"


def test_known_notices_alone_are_left_out(caplog):
    hush()
    hush()
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    assert [type(known).__name__ for known in logger.filters] == ["_Without"]
    logger.warning("MatMul8bitLt: inputs will be cast from float32 to float16")
    logger.warning("something else")
    assert caplog.messages == ["something else"]


def test_public_names_come_from_their_homes():
    from varifocal.tuners import MMAConfig

    assert varifocal.MMAConfig is MMAConfig
    assert set(varifocal.__all__) <= set(dir(varifocal))
    assert all(getattr(varifocal, name) is not None for name in varifocal.__all__)
    with pytest.raises(AttributeError, match="no attribute 'MMAConfg'"):
        varifocal.MMAConfg  # noqa: B018 - the look-up is the test


def test_the_libraries_keep_their_own_loaders():
    import peft

    assert peft.__spec__ is not None
    assert type(peft.__spec__.loader).__name__ == "SourceFileLoader"
    assert type(peft.__loader__).__name__ == "SourceFileLoader"


@pytest.mark.parametrize(
    ("versions", "sentence"),
    [
        (
            {"peft": "0.20.0", "transformers": "5.23.0"},
            "peft 0.20.0 is installed; Varifocal needs peft>=0.21,<0.22: "
            "pip install 'peft>=0.21,<0.22'",
        ),
        ({"peft": "0.22.0", "transformers": "5.23.0"}, "peft 0.22.0 is installed"),
        ({"peft": "0.21.2", "transformers": "4.57.1"}, "transformers 4.57.1 is installed"),
        ({"peft": "0.21.2", "transformers": "6.0.0"}, "transformers 6.0.0 is installed"),
    ],
)
def test_an_unsupported_library_is_named_with_the_mend(monkeypatch, versions, sentence):
    monkeypatch.setattr("importlib.metadata.version", versions.__getitem__)
    with pytest.raises(ModelError) as caught:
        check_versions()
    assert str(caught.value).startswith(sentence)


def test_a_public_name_asks_for_supported_libraries(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", {"peft": "0.20.0"}.__getitem__)
    with pytest.raises(ModelError, match=r"peft 0\.20\.0 is installed"):
        varifocal.train  # noqa: B018 - the look-up is the test


def test_a_missing_library_is_named_with_the_mend(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    with pytest.raises(ModelError, match=r"^peft is not installed; Varifocal needs peft>=0.21"):
        check_versions()


def test_the_edges_of_the_supported_range_pass(monkeypatch):
    for peft, transformers in (("0.21.0", "5.20.0"), ("0.21.9", "5.99.0")):
        found = {"peft": peft, "transformers": transformers}
        monkeypatch.setattr("importlib.metadata.version", found.__getitem__)
        check_versions()


def test_the_supported_range_is_that_of_the_package():
    wanted = {f"{name}<{below},>={low}" for name, (low, below) in SUPPORTED.items()}
    assert wanted <= {line.partition(";")[0].strip() for line in requires("varifocal") or []}
