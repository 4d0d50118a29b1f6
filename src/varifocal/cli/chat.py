"""A conversation with a trained run on the terminal."""

import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

from varifocal.assemble import open_run
from varifocal.cli.checks import readable_images
from varifocal.data.example import Image
from varifocal.errors import VarifocalError, nearest
from varifocal.serving.conversation import Chat
from varifocal.serving.engine import Engine, Sampling

COMMANDS = {
    "/image": "FILE: show this image with the next turn",
    "/base": "on or off: answer without the adapter, or with it again",
    "/new": "start a new conversation",
    "/help": "list these commands",
    "/quit": "leave (Ctrl-D does, too)",
}


class Conversation:
    """A conversation on the screen, and the images for the next turn."""

    def __init__(self, run: Path, sampling: Sampling, strength: float = 1.0) -> None:
        _, parts = open_run(run, strength=strength)
        engine = Engine(parts.model, parts.encoder, parts.load_images)
        self.chat = Chat(engine, sampling=sampling)
        self.images: list[Image] = []

    def obey(self, line: str) -> bool:
        """Do what a line of the chat says; False when it says to leave."""
        command, _, rest = line.partition(" ")
        if command == "/quit":
            return False
        if command == "/new":
            self.chat.turns, self.images = [], []
        elif command == "/help":
            for name, use in COMMANDS.items():
                print(f"{name:<8}{use}")
        elif command == "/image":
            self.show(readable_images([Path(rest.strip())]))
        elif command == "/base":
            self.switch(rest.strip())
        elif line.startswith("/"):
            raise VarifocalError(f"no command {command}{nearest(command, COMMANDS)}")
        elif line:
            self.say(line)
        return True

    def switch(self, word: str) -> None:
        """Answer without the adapter from now on ("on"), or with it again ("off")."""
        if word not in ("on", "off"):
            raise VarifocalError(f"/base is on or off, not '{word}'")
        if not self.chat.engine.has_adapter:
            raise VarifocalError("this run has no adapter that could be left out")
        self.chat.adapter = word == "off"

    def show(self, images: list[Image]) -> None:
        """Take images along with the next turn."""
        if images and self.chat.engine.load_images is None:
            raise VarifocalError("this run's model has no vision tower; it cannot see an image")
        self.images += images

    def say(self, text: str) -> None:
        """Ask, and print the answer as it comes."""
        before = len(self.chat.turns)
        with closing(self.chat.stream(text, self.images)) as stream:
            try:
                for piece in stream:
                    print(piece, end="", flush=True)
            finally:
                print()
        if len(self.chat.turns) == before:
            print("(no answer; the turn is left out of the conversation)", file=sys.stderr)
            return
        self.images = []


def typed_lines() -> Iterator[str]:
    """What is typed, a line at a time, until Ctrl-D."""
    with suppress(ImportError):
        import readline  # noqa: F401  (it gives input() its line editing)
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            yield input(prompt).strip()
        except EOFError:
            return
