"""Download of releases from the Hugging Face Hub."""

from pathlib import Path

from shiftjax.errors import InputError, MissingFileError


def fetch(repository: str, file: str) -> Path:
    """Downloads a file of a repository, unless it is in the local cache.

    Without a network, or with HF_HUB_OFFLINE=1, only the cache is used.

    Args:
      repository: "owner/name", or "owner/name@revision".
      file: path of the file in the repository.

    Returns:
      The local path of the file.

    Raises:
      InputError: if the client of the Hub is not installed, or the repository's name is
        invalid.
      MissingFileError: if the file is neither on the Hub nor in the cache.
    """
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise InputError(
            f"hf:{repository} needs huggingface_hub: pip install 'shiftjax[hub]'"
        ) from error
    name, _, revision = repository.partition("@")
    try:
        return Path(hub.hf_hub_download(name, file, revision=revision or None))
    except hub.errors.HFValidationError as error:
        raise InputError(
            f"hf:{repository}: the name of a repository must be hf:owner/name, or "
            "hf:owner/name@revision"
        ) from error
    except (hub.errors.HfHubHTTPError, hub.errors.LocalEntryNotFoundError) as error:
        raise MissingFileError(
            f"{file} of hf:{repository} is neither on the Hub nor in the local cache: "
            f"{str(error).splitlines()[0]}"
        ) from error
