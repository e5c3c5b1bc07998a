"""Finds out, within seconds and before heavy imports, whether a model or dataset on the Hugging Face hub is available."""

from pathlib import Path

from finemoe.errors import FinemoeError, first_line
from finemoe.extras import module_of_extra

_TIMEOUT_S = 10


def require_on_hub(source: str, kind: str = "model") -> bool:
    """Refuse a hub id that is neither cached nor can be downloaded; the hub's own clients would retry for a minute first.

    Args:
        source: a folder, a file or a hub id "owner/name". kind: "model" or "dataset".
    Returns:
        Whether only the cached copy can be used, since the hub cannot be reached.
    Raises:
        FinemoeError: the hub has no such model or cannot be reached, and no copy is cached; or `datasets` is not installed.
    """
    if Path(source).exists():
        return False
    if kind == "dataset":
        module_of_extra("datasets", f"reading {source!r} from the hub")
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    is_cached = _is_cached(source, kind)
    local = "folder" if kind == "model" else "file"
    nowhere = f"{kind} {source!r} is neither a {local} nor in the Hugging Face cache"
    if constants.HF_HUB_OFFLINE:
        if not is_cached:
            raise FinemoeError(f"{nowhere}, and HF_HUB_OFFLINE is set; unset it to download the {kind}, or give a {local}")
        return False
    try:
        HfApi().repo_info(source, repo_type=kind, timeout=_TIMEOUT_S)
    except HFValidationError as error:
        raise FinemoeError(f"{source!r} is not a hub id; give a {local}, or a hub id 'owner/name'") from error
    except RepositoryNotFoundError as error:
        if not is_cached:
            raise FinemoeError(
                f"no {kind} {source!r} on {constants.ENDPOINT}, and no such {local}; check the spelling, or, if it is private, "
                "log in with `hf auth login`"
            ) from error
    except HfHubHTTPError:
        return False  # the hub answers; loading reports what is wrong
    except Exception as error:  # errors of the HTTP library that the hub's client uses
        if not is_cached:
            reason = f"{constants.ENDPOINT} cannot be reached ({first_line(error)})"
            raise FinemoeError(f"{nowhere}, and {reason}; check the network, or give a {local}") from error
        return True
    return False


def _is_cached(source: str, kind: str) -> bool:
    """Whether a snapshot is in the cache, or, of a dataset, what the library datasets has prepared of it."""
    from huggingface_hub import constants

    snapshots = Path(constants.HF_HUB_CACHE) / f"{kind}s--{source.replace('/', '--')}" / "snapshots"
    prepared = Path(constants.HF_HOME) / "datasets" / source.replace("/", "___")
    return snapshots.is_dir() or (kind == "dataset" and prepared.is_dir())
