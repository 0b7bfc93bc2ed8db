"""`goldline frames`."""

import json

import click

from model_store.frames import open_roots
from pipeline.settings import Settings
from workers.commands import options


@click.group("frames")
def command() -> None:
    """The places for pictures that are too large for a message ([frames] roots)."""


@command.command("create")
@options.config
@options.as_json
def create(settings: Settings, as_json: bool) -> None:
    """Make the folders of [frames] roots, once, with their disk mounted; of Redis see whether it answers.

    A camera never makes one: the folder of a disk that is not mounted would take its pictures, and no worker find them.
    """
    roots = open_roots(settings.frames.roots, keep_s=settings.frames.keep_s)
    made = {url: store.create() for url, store in zip(settings.frames.roots, roots.stores, strict=True)}
    if as_json:
        click.echo(json.dumps({"roots": [{"url": url, "created": new} for url, new in made.items()]}))
        return
    for url, new in made.items():
        click.echo(f"{'made ' if new else 'there'}  {url}")
