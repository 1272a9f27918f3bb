"""`hub:USER/NAME[@REVISION]` <-> files: repositories of models on the Hugging Face hub, or what `HF_ENDPOINT` names.

Nothing is sent or fetched but by a name of this form. Downloads lie in the folder `hub` of ssldet's cache; with
`SSLDET_OFFLINE` or `HF_HUB_OFFLINE` only they are used. The client is `huggingface_hub`, and so is who one is logged in
as: `hf auth login`, or the variable `HF_TOKEN`.
"""

import importlib.util
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssldet.errors import CheckpointError, ConfigError, SetupError
from ssldet.home import cache_folder

log = logging.getLogger(__name__)

PREFIX = "hub:"
FORM = re.compile(r"hub:([\w.-]+/[\w.-]+)(?:@([^\s@]+))?")
KINDS = (".safetensors", ".onnx", ".pth", ".pt", ".bin")
"""Suffixes of files that can be a model, the best first."""
FOLDER = "config.json"
"""File that makes a repository a folder of transformers, of which all parts belong together."""
LOG_IN = "log in with: hf auth login (or set HF_TOKEN)"


@dataclass(frozen=True)
class HubName:
    """A repository of a model.

    Attributes:
        repository: `USER/NAME`.
        revision: Branch, tag or commit; empty for the newest of the main branch.
    """

    repository: str
    revision: str = ""

    def __str__(self) -> str:
        """Return it as users write it."""
        return f"{PREFIX}{self.repository}" + (f"@{self.revision}" if self.revision else "")


def is_on_hub(name: str | Path) -> bool:
    """Tell whether a name means a repository, and no file of this machine.

    Args:
        name: What a user named.
    """
    return str(name).startswith(PREFIX)


def hub_name(name: str | Path) -> HubName:
    """Return the repository that a name means.

    Args:
        name: `hub:USER/NAME`, or `hub:USER/NAME@REVISION`.

    Raises:
        ConfigError: It has another form.
    """
    found = FORM.fullmatch(str(name))
    if found is None:
        raise ConfigError(f"{name}: names no repository; write hub:USER/NAME or hub:USER/NAME@REVISION")
    return HubName(found[1], found[2] or "")


def fetched(name: str | Path, *, folder: bool = False) -> Path:
    """Return the model of a repository on this machine; what is not there yet is downloaded, licence and size said.

    Args:
        name: `hub:USER/NAME`, or `hub:USER/NAME@REVISION`.
        folder: Whether a folder of transformers is wanted as a whole where it is one, and not its weights alone.

    Raises:
        ConfigError: The name has another form.
        SetupError: The repository can't be reached, does not exist, or needs permission; or huggingface_hub is missing.
        CheckpointError: It holds no model, or several.
    """
    place = hub_name(name)
    api, cache = _api(place), cache_folder() / "hub"
    if os.environ.get("SSLDET_OFFLINE") or _client().is_offline_mode():
        root = _snapshot(place, cache)
        files = [str(path.relative_to(root)) for path in sorted(root.rglob("*")) if path.is_file()]
        log.info("%s: taken from %s, since nothing may be fetched", place, root)
        return _model(root, chosen(files, place, folder=folder))
    with _explained(place, "fetched"):
        found = api.model_info(place.repository, revision=place.revision or None, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in found.siblings or ()}
    wanted = chosen(sorted(sizes), place, folder=folder)
    size = sum(sizes[file] for file in wanted) / 1e6
    log.info("%s: commit %s, licence %s, %.1f MB", place, str(found.sha)[:12], _licence(found), size)
    with _explained(place, "fetched"):
        root = Path(
            api.snapshot_download(
                place.repository, revision=place.revision or None, cache_dir=cache, allow_patterns=list(wanted)
            )
        )
    return _model(root, wanted)


def published(name: str | Path, folder: Path, said: str) -> str:
    """Send a folder to a repository, which is made if there is none: private, so that its owner decides who sees it.

    Args:
        name: `hub:USER/NAME`.
        folder: What to send.
        said: Message of the commit.

    Returns:
        Address of the repository.

    Raises:
        ConfigError: The name has another form, or names a revision.
        SetupError: The repository can't be reached or may not be written; or huggingface_hub is missing.
    """
    place = writable(name)
    api = _api(place)
    with _explained(place, "written"):
        address = api.create_repo(place.repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=place.repository, folder_path=folder, commit_message=said)
    return str(address)


def writable(name: str | Path) -> HubName:
    """Return the repository that a name means, if it can be written to as far as is known here.

    Args:
        name: `hub:USER/NAME`.

    Raises:
        ConfigError: The name has another form, or names a revision.
        SetupError: Nothing may be sent, or nobody is logged in; or huggingface_hub is missing.
    """
    place = hub_name(name)
    if place.revision:
        raise ConfigError(f"{name}: what is sent becomes the newest revision of main; leave @{place.revision} out")
    if os.environ.get("SSLDET_OFFLINE") or _client().is_offline_mode():
        raise SetupError(f"{name}: can't be written, since SSLDET_OFFLINE or HF_HUB_OFFLINE forbids to send anything")
    if not _client().get_token():
        raise SetupError(f"{name}: can't be written by somebody unknown; {LOG_IN}")
    return place


def chosen(files: Sequence[str], place: HubName, *, folder: bool) -> tuple[str, ...]:
    """Return the files of a repository that are its model, the one to open first.

    Args:
        files: All files, as paths inside the repository.
        place: The repository, for messages.
        folder: Whether a folder of transformers is wanted as a whole.

    Raises:
        CheckpointError: None or several could be meant.
    """
    own = [file for file in files if "/" not in file]
    of_kind = {kind: [file for file in own if file.endswith(kind)] for kind in KINDS}
    weights = next((found for found in of_kind.values() if found), [])
    if folder and FOLDER in own and weights:
        # A model in several files has an index beside them.
        return (FOLDER, *(file for file in own if file.endswith(".json") and file != FOLDER), *weights)
    if len(weights) == 1:
        return tuple(weights)
    listed = ", ".join(weights or own) or "no file"
    wanted = "more than one file could be its model" if weights else f"no file of it ends in {', '.join(KINDS)}"
    raise CheckpointError(f"{place}: {wanted} ({listed}); download the one you mean, and name that")


def _model(root: Path, files: Sequence[str]) -> Path:
    return root if files[0] == FOLDER else root / files[0]


def _client() -> Any:
    """Return the module huggingface_hub, told to report nothing about its users."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise SetupError("hub:… is opened by huggingface_hub; pip install 'ssldet[hub]'")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import huggingface_hub  # here, because only few need it

    return huggingface_hub


def _api(place: HubName) -> Any:
    client = _client()
    # Read here: the client itself looks at the variable once, when it is imported.
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
    log.debug("%s: asked of %s", place, endpoint or client.constants.ENDPOINT)
    return client.HfApi(endpoint=endpoint, library_name="ssldet")


def _snapshot(place: HubName, cache: Path) -> Path:
    """Return the folder of a repository that has been downloaded before.

    Raises:
        SetupError: It has not.
    """
    wanted = place.revision or "main"
    found = _client().scan_cache_dir(cache).repos if cache.is_dir() else ()
    for revision in (revision for repo in found if repo.repo_id == place.repository for revision in repo.revisions):
        if wanted in revision.refs or revision.commit_hash.startswith(wanted):
            return Path(revision.snapshot_path)
    raise SetupError(f"{place}: not in {cache}, and SSLDET_OFFLINE or HF_HUB_OFFLINE forbids to fetch it")


def _licence(found: Any) -> str:
    """Return the licence that a repository states."""
    card = found.card_data
    stated = (card.get("license_name") or card.get("license")) if card else None
    return str(stated or "not stated")


@contextmanager
def _explained(place: HubName, what: str) -> Iterator[None]:
    """Say on one line why a repository can't be fetched or written."""
    errors = _client().errors
    try:
        yield
    except errors.GatedRepoError as error:
        raise SetupError(f"{place}: its owner asks for consent: accept the terms on its page, and {LOG_IN}") from error
    except errors.RepositoryNotFoundError as error:
        raise SetupError(f"{place}: no such repository, or it is private; check the name, or {LOG_IN}") from error
    except errors.RevisionNotFoundError as error:
        raise SetupError(f"{place}: has no revision {place.revision!r}; leave it out for the newest") from error
    except errors.HFValidationError as error:
        raise ConfigError(f"{place}: is no name of a repository ({_line(error)})") from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        refused = status in {401, 403}
        why = f"you have no permission; {LOG_IN} as somebody who has" if refused else f"the hub answers {_line(error)}"
        raise SetupError(f"{place}: can't be {what}, {why}") from error
    except Exception as error:  # whatever HTTP client huggingface_hub uses has exceptions of its own
        remedy = "try again; SSLDET_OFFLINE=1 takes what was fetched before" if what == "fetched" else "try again"
        raise SetupError(f"{place}: can't be {what} ({_line(error)}); {remedy}") from error


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
