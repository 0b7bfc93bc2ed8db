"""`goldline completion`."""

import click
from click.shell_completion import get_completion_class

VARIABLE = "_GOLDLINE_COMPLETE"


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print what makes SHELL complete commands and options at the press of Tab.

    \b
    Once for every new shell:
      goldline completion bash >> ~/.bashrc
      goldline completion zsh >> ~/.zshrc
      goldline completion fish > ~/.config/fish/completions/goldline.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - click has these three
    click.echo(kind(ctx.find_root().command, {}, "goldline", VARIABLE).source())
