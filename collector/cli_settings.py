"""How every command gets its settings, and how it fails."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


class Failed(click.ClickException):
    """Ends a command: the text goes to standard error, the exit code to the shell."""

    exit_code = 1

    def show(self, file: Any = None) -> None:
        """Print the text alone: it begins with the file or the thing that it is about."""
        click.echo(self.message, err=True)


class BadSettings(Failed):
    """Nothing works with these settings."""

    exit_code = 78


def config_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--config``, which every command takes, before its own name or after."""
    return click.option("-c", "--config", type=click.Path(path_type=Path), help="Settings file (or COLLECTOR_CONFIG).")(
        command
    )


def settings_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Read the settings and give them to the command as its first argument; turn errors of the disk into sentences."""

    @config_option
    @functools.wraps(command)
    def with_settings(*arguments: Any, config: Path | None, **options: Any) -> Any:
        from collector import logs
        from collector.settings import LogSettings, SettingsError, load
        from spool.directory import SpoolError

        logs.setup(LogSettings(level="warning"))
        try:
            settings = load(config or click.get_current_context().find_root().params.get("config"), os.environ)
            return command(settings, *arguments, **options)
        except SettingsError as exc:
            raise BadSettings("\n".join(exc.errors)) from exc
        except SpoolError as exc:
            raise Failed(str(exc)) from exc
        except BrokenPipeError:
            raise  # whoever read our output has seen enough; click ends quietly
        except OSError as exc:
            raise Failed(f"{exc.filename}: {exc.strerror}" if exc.filename else str(exc)) from exc

    return with_settings


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--json``, which every command that shows something takes."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(command)


def dry_run_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--dry-run``, which every command takes that changes something."""
    return click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")(command)
