"""Whether this machine is logged in to Weights & Biases, and what ``tracking.wandb=auto`` means here.

Read from where wandb looks itself, without importing it: it takes most of a second.
"""

from __future__ import annotations

import configparser
import netrc
from dataclasses import dataclass
from urllib.parse import urlsplit

from ..dist import environment
from ..errors import problem
from ..metrics import wandb_sink

CLOUD = "https://api.wandb.ai"
INSTALL = "pip install wandb"


@dataclass(frozen=True)
class Mode:
    """How a run is tracked.

    Attributes:
        name: online, offline, or None for not at all.
        line: for the user, where nobody asked for that by name.
    """

    name: wandb_sink.Online | None
    line: str | None = None


def server() -> str:
    """Address of the wandb server that this user's runs go to."""
    return (environment.wandb_server() or _settings().get("base_url") or CLOUD).rstrip("/")


def logged_in() -> bool:
    """Whether there is a key for :func:`server`: in a variable, in wandb's settings, or in the netrc file."""
    return environment.wandb_key_given() or bool(_settings().get("api_key")) or _in_netrc(urlsplit(server()).netloc)


def mode(asked: str) -> Mode:
    """What an option ``tracking.wandb`` makes of this machine.

    Args:
        asked: auto, online, offline or disabled.
    """
    if asked != "auto":
        return Mode("online" if asked == "online" else "offline" if asked == "offline" else None)
    wanted = environment.wandb_mode() or _settings().get("mode")
    if wanted in ("disabled", "off"):
        return Mode(None)
    off = "; metrics.jsonl has everything"
    if not wandb_sink.installed():
        return Mode(None, f"wandb: off, as it is not installed ({INSTALL}){off}")
    if wanted in ("offline", "dryrun"):
        return Mode("offline")
    if not logged_in():
        return Mode(None, f"wandb: off, as nobody is logged in (wandb login, or tracking.wandb=offline){off}")
    return Mode("online")


def problems(asked: str) -> list[str]:
    """Why a mode that was asked for by name cannot be had on this machine."""
    if asked not in ("online", "offline"):
        return []
    if not wandb_sink.installed():
        fix = f"{INSTALL}, or set tracking.wandb=disabled"
        return [problem("tracking.wandb", asked, "auto or disabled, as wandb is not installed", fix)]
    if asked == "online" and not logged_in():
        allowed = f"auto, offline or disabled, as nobody is logged in to {server()} here"
        return [problem("tracking.wandb", asked, allowed, "wandb login, or set tracking.wandb=offline")]
    return []


def _settings() -> dict[str, str]:
    """What wandb's commands (``wandb offline``, ``wandb login --host``) wrote down for this user."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(environment.wandb_settings_folder() / "settings")
        return dict(parser["default"]) if "default" in parser else {}
    except (OSError, configparser.Error, UnicodeDecodeError):
        return {}


def _in_netrc(host: str) -> bool:
    try:
        found = netrc.netrc(environment.netrc_file()).authenticators(host)
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return False
    return found is not None and bool(found[2])
