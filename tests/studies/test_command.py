"""All studies take the same command line, and tell mistakes in a sentence."""

from importlib import import_module

import pytest
from studies.command import check_data, command_of, parser_of, read_options, run_study
from studies.record import write_study

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
    ("given", "told"),
    [
        (["x"], "OUT"),
        (["x", "--seeds", "0,1,2"], "OUT"),
        (["x", "--seeds", "0"], "OUT --rows 8 --seeds 0"),
        (["x", "--quick", "--seeds", "0"], "OUT --quick"),
        (["x", "--quick", "--seeds", "1,0", "--data", "."], "OUT --quick --seeds 1,0 --data DIR"),
    ],
)
def test_the_command_is_told_with_what_changes_the_figures(given, told):
    options = read_options(parser_of("A study.", quick="few", data="holds all"), given)
    more = ["--rows 8"] if "--rows" in told else []
    assert command_of("name", options, *more) == f"python -m studies.name {told}"


@pytest.mark.parametrize("name", ["alignment", "mlan"])
def test_data_that_are_read_late_are_looked_for_first(name, tmp_path, monkeypatch):
    data, out = tmp_path / "data", tmp_path / "out"
    (data / "scienceqa-text").mkdir(parents=True)
    (data / "nlvr").mkdir()
    (data / "nlvr" / "train.jsonl").touch()
    monkeypatch.setattr("sys.argv", [name, str(out), "--data", str(data)])
    with pytest.raises(DataError, match=r"--data .*: there is no '.*nlvr/dev.jsonl'; give"):
        import_module(f"studies.{name}").main()
    assert not out.exists()
    (data / "nlvr" / "dev.jsonl").touch()
    check_data(data, "nlvr/dev.jsonl")


def test_figures_are_written_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    write_study(tmp_path / "study.json", "python", [0], {"right": 1})
    assert '"commit": ""' in (tmp_path / "study.json").read_text()


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


def test_ctrl_c_between_two_trainings_ends_with_a_sentence(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run_study(main)
    assert ended.value.code == 130
    told = "stopped; finished points are kept, the same command goes on\n"
    assert capsys.readouterr().err == told
