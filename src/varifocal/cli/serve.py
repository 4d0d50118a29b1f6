"""The verb that lets a run answer over HTTP."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from varifocal.cli.options import StrengthOption, ready
from varifocal.errors import VarifocalError
from varifocal.sigterm import Terminated

if TYPE_CHECKING:
    from varifocal.serving.settings import ServeSettings

_NEEDED = ("fastapi", "uvicorn", "prometheus_client")  # the extra `serve`


ModelsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN_OR_MODEL...",
        help="Run directories, or a model's name; equal weights are held once.",
    ),
]
HostOption = Annotated[
    str, typer.Option(help="Address to listen on; another than this machine's asks for a key.")
]
PortOption = Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")]
ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        envvar="VARIFOCAL_API_KEY", help="Clients must send it: Authorization: Bearer KEY."
    ),
]
NameOption = Annotated[
    str | None, typer.Option(help="What clients call a single model; by default the run's name.")
]
MaxBatchOption = Annotated[int, typer.Option(min=1, help="Requests answered at a time.")]
MaxQueueOption = Annotated[
    int,
    typer.Option(min=0, help="Requests that wait while others are answered; one more: 429."),
]
MaxNewTokensOption = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
MaxTimeOption = Annotated[float, typer.Option(min=1, help="Longest answer, in seconds.")]
MaxBodyOption = Annotated[float, typer.Option(min=0.01, help="Largest request, MiB.")]
MaxImagesOption = Annotated[int, typer.Option(min=0, help="Images in one request.")]
MaxPixelsOption = Annotated[
    float, typer.Option(min=0.01, help="Largest image, millions of pixels.")
]
MaxTextOption = Annotated[int, typer.Option(min=1, help="Texts of one request, characters.")]
AllowOriginOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ORIGIN", help="Let pages of this site ask, such as https://chat.example."
    ),
]
ImageHostOption = Annotated[
    list[str] | None,
    typer.Option(metavar="HOST", help="Fetch https images from this host; else none are."),
]


def add_serve_verb(app: typer.Typer) -> None:
    """Give an app the verb of this file."""
    app.command(epilog="Example: varifocal serve runs/demo")(serve)


def serve(
    models: ModelsArgument,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    api_key: ApiKeyOption = None,
    name: NameOption = None,
    strength: StrengthOption = 1.0,
    max_batch: MaxBatchOption = 8,
    max_queue: MaxQueueOption = 64,
    max_new_tokens: MaxNewTokensOption = 1024,
    max_time: MaxTimeOption = 300.0,
    max_body_mib: MaxBodyOption = 20.0,
    max_images: MaxImagesOption = 8,
    max_image_mpixels: MaxPixelsOption = 25.0,
    max_text_chars: MaxTextOption = 1_000_000,
    image_host: ImageHostOption = None,
    allow_origin: AllowOriginOption = None,
) -> None:
    """Answer over HTTP as OpenAI's API does, with a page to talk on."""
    from varifocal.serving.settings import LOOPBACK

    if host not in LOOPBACK and not api_key:
        raise VarifocalError(
            f"--host {host} lets other machines in: give --api-key too (or VARIFOCAL_API_KEY), "
            "or leave --host out to serve this machine alone"
        )
    _check_installed()
    from varifocal.cli.checks import check_port, check_run_or_model
    from varifocal.serving.settings import ServeSettings

    settings = ServeSettings(
        host=host,
        port=port,
        api_key=api_key,
        max_body_mib=max_body_mib,
        max_images=max_images,
        max_image_mpixels=max_image_mpixels,
        max_new_tokens=max_new_tokens,
        max_queue=max_queue,
        max_batch=max_batch,
        max_time_s=max_time,
        max_text_chars=max_text_chars,
        allow_origins=tuple(each.rstrip("/") for each in allow_origin or ()),
        image_hosts=tuple(each.lower() for each in image_host or ()),
    )
    sources = _sources(models, name)
    for source in models:
        check_run_or_model(source)
    check_port(host, port)
    ready()
    _run(_app(sources, strength, settings), settings, ", ".join(sources))


def _sources(models: list[str], name: str | None) -> dict[str, str]:
    """Map what clients call each model to where it is."""
    names = [Path(model).resolve().name if Path(model).is_dir() else model for model in models]
    if name is not None:
        if len(models) > 1:
            raise VarifocalError(
                "--name is for a single model; several are called as their folders are"
            )
        names = [name]
    twice = next((each for each in names if names.count(each) > 1), None)
    if twice is not None:
        raise VarifocalError(f"two models would be called {twice}; rename the folder of one")
    return dict(zip(names, models, strict=True))


def _app(sources: dict[str, str], strength: float, settings: ServeSettings) -> Any:
    """Open the models, one engine each, and make the server's app."""
    from varifocal.assemble import open_model
    from varifocal.serving.adapter_routes import share_equal_weights
    from varifocal.serving.api import create_app
    from varifocal.serving.engine import Engine
    from varifocal.serving.starters import held_out_questions

    engines: dict[str, Engine] = {}
    recipes = []
    for name, source in sources.items():
        print(f"loading {source}", file=sys.stderr, flush=True)
        recipe, parts = open_model(source, strength=strength)
        recipes.append(recipe)
        share_equal_weights(parts.model, [engine.model for engine in engines.values()])
        engines[name] = Engine(
            parts.model,
            parts.encoder,
            parts.load_images,
            max_batch=settings.max_batch,
            max_queue=settings.max_queue,
        )
    first, *others = engines
    rest = {name: engines[name] for name in others}
    takes_images = engines[first].load_images is not None
    starters = held_out_questions(recipes[0]) if takes_images else ()
    return create_app(engines[first], name=first, settings=settings, others=rest, starters=starters)


def _check_installed() -> None:
    missing = [each for each in _NEEDED if importlib.util.find_spec(each) is None]
    if missing:
        raise VarifocalError(
            f"serving needs {missing[0]}; run: "
            "pip install fastapi uvicorn prometheus-client llguidance"
        )


def _run(app: Any, settings: Any, name: str) -> None:
    """Serve until a signal; what is being answered is answered to its end."""
    import uvicorn

    from varifocal.cli.checks import taken
    from varifocal.serving.connection import server_config

    class Server(uvicorn.Server):
        """Says where it is once it listens."""

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                host = f"[{settings.host}]" if ":" in settings.host else settings.host
                port = self.servers[0].sockets[0].getsockname()[1]
                print(f"{name}: http://{host}:{port} (the page), http://{host}:{port}/v1 (the API)")
                print("Ctrl-C or SIGTERM stops it when what is being answered is done", flush=True)

    server = Server(server_config(app, settings))
    try:
        server.run()
    except Terminated:  # uvicorn sends the signal again when all is answered
        return
    except SystemExit as error:  # uvicorn's way of saying that it could not listen
        raise taken(settings.host, settings.port) from error
    if not server.started:
        raise typer.Exit(os.EX_UNAVAILABLE)
