"""Bundles on the Hugging Face Hub: finding one by folder or repository, and which parts need no upload."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from generator.model_names import hub_file, is_model_id
from indexes.atomic_files import readable_directory
from indexes.errors import MismatchError, ResourceError, UsageError
from indexes.tiny_encoder import is_portable_name


def bundle_folder(
    bundle: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    leave_out: Sequence[str] = (),
) -> Path:
    """The folder of a bundle: a local one, or the snapshot of a repository on the Hub, downloaded once.

    Args:
        bundle: A folder, or the id of a repository ("user/name"); a folder of that name takes precedence.
        revision: Branch, tag or commit of the repository; not for a local folder.
        token: Access token; None takes the one that is logged in, False none.
        cache_dir: Where snapshots are kept; default: the Hub's cache (HF_HOME).
        local_files_only: Take what is in the cache, without the network.
        leave_out: Parts that are not needed: "index", "encoder" or "base".

    Raises:
        MismatchError: It is neither a folder nor a possible id of a repository.
        ResourceError: It is not a folder, and cannot be downloaded.
        UsageError: A revision of a local folder.
    """
    folder = readable_directory(Path(bundle))
    if folder.is_dir():
        if revision is not None:
            raise UsageError(
                f"A revision belongs to a repository on the Hub, but {bundle} is a local folder; got revision "
                f"{revision!r}. Leave the revision out, or run where no folder has the name of the repository."
            )
        return folder
    if isinstance(bundle, Path) or not is_repo_id(bundle):
        raise MismatchError(
            f"A bundle is a folder or a repository on the Hugging Face Hub, but {bundle} is neither. Check the path."
        )
    try:
        found = snapshot_download(
            bundle,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            ignore_patterns=[f"{part}/*" for part in leave_out],
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ResourceError(
            f"A bundle must be a local folder or a repository on the Hugging Face Hub; there is no folder {bundle!r}, "
            f"and downloading it failed: {lines[0]} Check the name, the revision and the network (HF_HUB_OFFLINE "
            "forbids it), or give a token to a private repository."
        ) from error
    return Path(found)


def is_repo_id(name: str) -> bool:
    """Whether a text can be the id of a repository with a bundle: "owner/name"."""
    return "/" in name and is_model_id(name)


def can_be_found_elsewhere(model: str) -> bool:
    """Whether the recorded name of a model is valid on another machine: on the Hub, a model by name, or "tiny"."""
    on_hub = bool(model) and not Path(model).exists() and (is_model_id(model) or hub_file(model) is not None)
    return is_portable_name(model) or on_hub
