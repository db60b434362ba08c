"""The command line: one file per command. torch is imported inside the commands, so help answers at once."""

from __future__ import annotations

import sys

import typer

from expunge import dist, machine
from expunge.cli import (
    attack,
    audit,
    bench,
    calibrate,
    demo,
    listing,
    pack,
    report,
    run,
    show,
    train,
    unlearn,
    verify,
)
from expunge.errors import ExpungeError

app = typer.Typer(
    name="expunge", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Find, remove and audit the removal of what a language model should not know or say.",
    epilog="Start with: expunge demo",
)
STOPPED = 130  # what typer makes of KeyboardInterrupt before it could be caught here

app.command("demo")(demo.demo)
app.command("run")(run.run)
app.command("train")(train.train)
app.command("unlearn")(unlearn.unlearn)
app.command("audit")(audit.audit)
app.command("attack")(attack.attack)
app.command("pack")(pack.pack)
app.command("verify")(verify.verify)
app.command("bench")(bench.bench)
app.command("calibrate")(calibrate.calibrate)
app.command("list")(listing.list_parts)
app.command("show")(show.show)
app.command("report")(report.report)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit code: 0 done, 1 verdict not PASS, 2 user error, 3 interrupted and resumable."""
    machine.prepare()
    try:
        result = app(args=arguments, prog_name="expunge", standalone_mode=False)
        if result == STOPPED:
            return _interrupted()
        return result if isinstance(result, int) else 0
    except ExpungeError as error:
        print(f"expunge: {error}", file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except typer.Exit as stop:
        return int(stop.exit_code)
    except Exception as error:  # click's usage errors carry their own message and code
        show_usage = getattr(error, "show", None)
        if show_usage is None:
            raise
        show_usage()
        return 2


def _interrupted() -> int:
    print("expunge: interrupted; a run with --out goes on with the same command and --resume", file=sys.stderr)
    return 3


def entry() -> None:
    """The console script."""
    code = main()
    dist.leave(code)
    sys.exit(code)
