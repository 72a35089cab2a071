"""Releases on the Hugging Face hub."""

from pathlib import Path

from shiftjax.errors import InputError, MissingFileError


def fetch(repository: str, file: str) -> Path:
    """Fetches a file of a repository, or takes it from the hub's cache.

    Without a network, or with HF_HUB_OFFLINE=1, the cache alone is used.

    Args:
      repository: "owner/name", or "owner/name@revision".
      file: its path in the repository.

    Returns:
      Where the file is.

    Raises:
      InputError: if the hub's client is not installed, or the name is none.
      MissingFileError: if the file is neither on the hub nor in the cache.
    """
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise InputError(
            f"hf:{repository} needs the hub's client: pip install 'shiftjax[hub]'"
        ) from error
    name, _, revision = repository.partition("@")
    try:
        return Path(hub.hf_hub_download(name, file, revision=revision or None))
    except hub.errors.HFValidationError as error:
        raise InputError(
            f"hf:{repository}: a repository is given as hf:owner/name"
        ) from error
    except (hub.errors.HfHubHTTPError, hub.errors.LocalEntryNotFoundError) as error:
        raise MissingFileError(
            f"{file} of hf:{repository} is neither on the hub nor in its cache: "
            f"{str(error).splitlines()[0]}"
        ) from error
