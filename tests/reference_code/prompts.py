"""The papers' own code next to our chat templates and ScienceQA prompts, on random texts.

    python tests/reference_code/prompts.py --llava A --mlan B --mixlora C --lavin D --scienceqa E

Each is a git repository that holds the commit below; single files of it are run, none stands here,
and CI does not run this.
"""

import argparse
import random
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from languages import byte_level
from varifocal.data.encoding.chat_template import ChatTemplate
from varifocal.data.encoding.named_template import choose_template
from varifocal.data.formats.base import ParseOptions
from varifocal.data.formats.scienceqa import parse_scienceqa
from varifocal.data.readers.base import Record
from varifocal.recipe.prompt_formats import INPUTS, OUTPUTS

FILES = {
    "llava": ("c121f0432da27facab705978f83c4ada465e46fd", "llava/conversation.py"),
    "mlan": ("7ce179a8d6598142f0ba7038b6074c5fe1e4e766", "llava/conversation.py"),
    "mixlora": ("af5cc3f4b42eada1e41691022a500e5711ab58e1", "llava/conversation.py"),
    "lavin": ("dd0a1bfcfd6dd002f6cdc7113366b53957c927a6", "util/base_prompt.py"),
    "scienceqa": ("2cbf8318e07b9ece895bb2ae605e71e38d623264", "models/base_prompt.py"),
}
IMAGE = "<image>"
WORDS = ("iron  bar", " \n", "a", "b.", "", "  two", "Which is it?", "x\ny", " tail ")


def load(name: str, repository: Path) -> Any:
    """Run one file of a repository as a module."""
    commit, path = FILES[name]
    source = subprocess.run(
        ["git", "-C", repository, "show", f"{commit}:{path}"], check=True, capture_output=True
    ).stdout
    module = types.ModuleType(f"their_{name}")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    exec(compile(source, path, "exec"), module.__dict__)
    return module


def compare_conversations(theirs: Any) -> int:
    """Compare one and two turns, with an image and with a system prompt, with LLaVA's."""
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    count = 0
    for ours, their_name in (("vicuna_v1", "vicuna_v1"), ("llama2", "llama_2")):
        template = ChatTemplate(tokenizer, IMAGE, choose_template(ours, tokenizer, IMAGE))
        for system in (None, "Be brief."):
            for num_turns in (1, 2):
                talk = theirs.conv_templates[their_name].copy()
                talk.system = talk.system if system is None else system
                turns = [{"role": "system", "content": talk.system}]
                texts = ["What is it?", "A fox.", "And now?", "Two."][: 2 * num_turns]
                for number, text in enumerate(texts):
                    with_image = number == 0
                    talk.append_message(
                        talk.roles[number % 2], f"{IMAGE}\n{text}" if with_image else text
                    )
                    role = ("user", "assistant")[number % 2]
                    turns.append({"role": role, "content": IMAGE + text if with_image else text})
                if system is None and ours == "vicuna_v1":
                    turns = turns[1:]  # its own default
                written = template.render(turns).removeprefix("<s>")
                assert written == talk.get_prompt(), (ours, written, talk.get_prompt())
                count += 1
    return count


def problem(lot: random.Random) -> dict[str, Any]:
    """Draw a problem of ScienceQA whose texts have blanks and line breaks anywhere."""

    def text(least: int = 0) -> str:
        return "".join(lot.choice(WORDS) for _ in range(lot.randint(least, 5)))

    row: dict[str, Any] = {key: text() for key in ("hint", "caption", "lecture", "solution")}
    choices = [f"c{text(1)}" for _ in range(lot.randint(2, 5))]
    return row | {"question": f"Q{text()}", "choices": choices, "answer": lot.randrange(2)}


def compare_prompts(theirs: Any, num_problems: int) -> int:
    """Compare prompts and answers in all formats with LaVIN's `build_prompt`."""
    lot, count = random.Random(0), 0
    for _ in range(num_problems):
        row = problem(lot)
        for name in (f"{asked}-{answered}" for asked in INPUTS for answered in OUTPUTS):
            for use_captions in (False, True):
                settings = {"prompt_format": name, "use_caption": use_captions}
                args = types.SimpleNamespace(**settings, options=list("ABCDE"))
                asked = ParseOptions(
                    source="problems.json",
                    format="scienceqa",
                    image_folder=Path(),
                    answer_as="letter",
                    prompt_format=name,
                    prompt_text="published",
                    use_captions=use_captions,
                )
                example = parse_scienceqa(Record("problems.json", "1", dict(row)), asked)
                ours = f"{example.messages[0].text}\nResponse:", example.messages[1].text
                assert ours == theirs.build_prompt({"1": row}, "1", args), (name, row)
                count += 1
    return count


def compare_reference_prompts(theirs: Any, num_problems: int) -> int:
    """Compare inputs and outputs with ScienceQA's few-shot form, `Answer:` in front of answers."""
    lot, count = random.Random(1), 0
    for _ in range(num_problems):
        row = {key: value for key, value in problem(lot).items() if key != "caption"}
        row |= {"lecture": "Metals shine.", "solution": "Iron shines.", "caption": ""}
        for name in (f"{asked}-{answered}" for asked in INPUTS for answered in OUTPUTS):
            args = types.SimpleNamespace(
                prompt_format=name, use_caption=False, options=list("ABCDE")
            )
            written = theirs.build_prompt({"1": row, "2": row}, ["1"], "2", args)
            asked = ParseOptions(
                source="problems.json",
                format="scienceqa",
                image_folder=Path(),
                answer_as="letter",
                prompt_format=name,
                prompt_text="published",
            )
            example = parse_scienceqa(Record("problems.json", "1", dict(row)), asked)
            ours = f"{example.messages[0].text}\nAnswer: {example.messages[1].text}"
            assert written.startswith(ours), (name, ours, written)
            count += 1
    return count


def main() -> None:
    """Run every comparison whose repository is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in FILES:
        parser.add_argument(f"--{name}", type=Path)
    given = {name: path for name, path in vars(parser.parse_args()).items() if path is not None}
    for name, repository in given.items():
        theirs = load(name, repository)
        if name == "lavin":
            count = compare_prompts(theirs, 100)
        elif name == "scienceqa":
            count = compare_reference_prompts(theirs, 100)
        else:
            count = compare_conversations(theirs)
        sys.stdout.write(f"{name}: {count} texts are equal\n")


if __name__ == "__main__":
    main()
