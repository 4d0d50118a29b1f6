"""The verb that lets a run answer over HTTP."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from varifocal.cli.options import StrengthOption, ready
from varifocal.errors import VarifocalError
from varifocal.sigterm import Terminated

_NEEDED = ("fastapi", "uvicorn", "prometheus_client")  # the extra `serve`


ModelArgument = Annotated[
    str, typer.Argument(metavar="RUN_OR_MODEL", help="A run directory, or a model's name.")
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
    str | None, typer.Option(help="What clients call the model; by default the run's name.")
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
    model: ModelArgument,
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
    check_run_or_model(model)
    check_port(host, port)
    ready()
    print(f"loading {model}", file=sys.stderr, flush=True)
    from varifocal.assemble import open_model
    from varifocal.serving.api import create_app
    from varifocal.serving.engine import Engine

    _, parts = open_model(model, strength=strength)
    engine = Engine(
        parts.model, parts.encoder, parts.load_images, max_batch=max_batch, max_queue=max_queue
    )
    called = name or (Path(model).name if Path(model).is_dir() else model)
    app = create_app(engine, name=called, settings=settings)
    _run(app, settings, called)


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
