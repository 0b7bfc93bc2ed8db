"""The command `goldline`: one group, one file for each command in `workers/commands`."""

import importlib
import os
import sys
from difflib import get_close_matches

import click
from click.shell_completion import CompletionItem

from pipeline.errors import GoldlineError

# name -> module, one line each; a command's imports cost nothing until it is used.
COMMANDS = {
    "demo": "the whole line on this machine: broker, cameras, worker, gate, and a report",
    "screen": "show which good pictures are unlike the others, before a fit",
    "fit": "learn a station's good parts from a folder of pictures",
    "calibrate": "give a station's model a threshold from verified good pictures",
    "refit": "let a station's model learn recently accepted parts, if a review allows it",
    "thresholds": "what a station's threshold promises, and what more parts would buy",
    "audit": "mark parts for a person to verify, whatever their verdict",
    "score": "verdicts for pictures, without Kafka",
    "evaluate": "figures of merit of methods on datasets with known defects",
    "check": "validate a line.toml",
    "doctor": "what of this machine, the broker and the store is not fit, and what to do",
    "status": "how the line stands: lag, rate, times, verdicts, models, drift",
    "models": "list, show, promote, roll back, keep and delete model versions",
    "worker": "inspect frames: the process that runs on line servers",
    "camera": "send pictures as frames",
    "gate": "act as the reject gate",
    "results": "follow the verdicts",
    "drift": "how a station's monitors stand: light, sharpness, alignment, scores",
    "baseline": "accept a station as it is now, after drift",
    "dead-letters": "list, show and replay frames that could not be read",
    "feedback": "say that a part is good or defective",
    "pool": "look at the frames that the next refit may learn from, remove some",
    "topics": "create and check the topics",
    "frames": "create the places for pictures too large for a message",
    "kafka": "run a development broker on this machine",
    "simulate": "a season in minutes: what refits cost and save, on drawn parts",
    "weights": "find, import, export and verify weights of backbones; train the compact one",
    "sizing": "partitions, workers and brokers for many stations, and how frames then fare",
    "bench": "measure",
    "completion": "make a shell complete commands and options",
}


# Torch's threads wait for their next operation by turning in circles, for 10 ms unless told otherwise, on cores that
# OpenVINO and the event loop want. 0.1 to 0.2 ms are enough from one small operation to the next.
_SPIN_COUNT = "5000"


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            near = get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"see {ctx.command_path} --help"
            ctx.fail(f"no command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"workers.commands.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names of commands without loading them: some take seconds, and Tab is pressed often."""
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [CompletionItem(name, help=said) for name, said in COMMANDS.items() if name.startswith(incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="goldline")
def cli() -> None:
    """Inspect parts on a running production line, learning from good parts alone.

    \b
    Begin here:
      goldline demo                                             see it all work
      goldline fit GOOD_PICTURES --station line-1/top --store file://$PWD/models
      goldline score line-1/top PICTURES --store file://$PWD/models
    """


def main() -> None:
    """Run the command line; an error of ours is one clear line and exit status 2."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)  # read when torch is loaded, which no command has done yet
    try:
        status = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("stopped", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except GoldlineError as error:
        click.echo(f"goldline: {error}", err=True)
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:
        if error.filename is None:
            raise
        click.echo(f"goldline: {error.filename}: {error.strerror}", err=True)
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)
