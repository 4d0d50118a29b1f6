"""All studies take the same command line, and tell mistakes in a sentence."""

from importlib import import_module

import pytest
from studies.command import parser_of, read_options, run_study

from varifocal.errors import DataError, Stopped

STUDIES = ("alignment", "lavin", "mixlora", "mlan")


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--seeds", "0,7"], "argument --seeds: '0,7': give some of 0,1,2, each once"),
        (["--seeds", "1,1"], "argument --seeds: '1,1': give some of 0,1,2, each once"),
        (["--data", "nowhere"], "argument --data: no folder 'nowhere'"),
    ],
)
def test_a_wrong_option_is_told_before_anything_runs(
    name, wrong, told, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [name, "out", *wrong])
    with pytest.raises(SystemExit) as ended:
        import_module(f"studies.{name}").main()
    assert ended.value.code == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_seeds_that_are_not_given(tmp_path):
    parser = parser_of("A study.", quick="few", data="holds all")
    assert read_options(parser, [str(tmp_path)]).seeds == (0, 1, 2)
    assert read_options(parser, [str(tmp_path), "--quick"]).seeds == (0,)
    assert read_options(parser, [str(tmp_path), "--quick", "--seeds", "2,1"]).seeds == (2, 1)


@pytest.mark.parametrize(
    ("error", "code"), [(Stopped("stopped; go on"), 130), (DataError("no 'x'"), 2)]
)
def test_it_ends_with_a_sentence(error, code, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        run_study(main)
    assert ended.value.code == code
    assert capsys.readouterr().err == f"{error}\n"
