"""Checkpoints in folders of the Hugging Face hub's layout, and on the hub itself.

A folder holds `model.safetensors` (a file of `save_checkpoint`, which describes itself), `config.json` (the sizes, for
readers other than this package) and `README.md` (a model card with the hub's metadata). A folder is read without
huggingface_hub and without a network; the hub is asked only for names that are no folder here.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from swintormer.checkpoint.checkpoint import Checkpoint, checkpoint_of, read_checkpoint, save_checkpoint
from swintormer.errors import InputError, SwintormerError, described, first_line
from swintormer.images.files import is_folder, replacing
from swintormer.model.network import Swintormer

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
PATIENCE = 5.0  # seconds until a hub that does not answer is out of reach

TEMPLATE = """---
{{ card_data }}
---

# Swintormer

{{ summary }}

```python
from swintormer import Deblurrer, read_pretrained

deblur = Deblurrer(read_pretrained("this repository, or a folder"))
```

`swintormer deblur photo.jpg -o sharp.jpg --model owner/name` takes it from the shell.

{% for name, text in notes.items() -%}
- {{ name }}: {{ text }}
{% endfor -%}
- sizes: `{{ sizes }}`
- method: [Efficient Image Deblurring Networks based on Diffusion Models]({{ paper_url }})
"""


def read_pretrained(place: str | Path, *, prior: bool = True, **download: Any) -> Checkpoint:
    """A checkpoint from a folder, or from the hub: `owner/name`.

    Where the hub cannot be reached, what was downloaded earlier is taken.

    Args:
        prior: as for `read_checkpoint`.
        **download: for `huggingface_hub.hf_hub_download`: `revision`, `token`, `cache_dir`, `local_files_only`,
            `force_download`.

    Raises:
        InputError: no name.
        SwintormerError: the folder or the repository does not hold such a checkpoint, or the hub cannot be reached.
    """
    return read_checkpoint(pretrained_file(place, **download), prior=prior)


def pretrained_file(place: str | Path, **download: Any) -> Path:
    """The file of weights of a folder, or of a repository on the hub; arguments and errors as of `read_pretrained`."""
    if not isinstance(place, str | Path) or not str(place):
        raise InputError(f"Expected a folder or the name of a repository, owner/name, found {described(place)}.")
    if is_folder(Path(place)):
        found = Path(place, WEIGHTS)
        if not found.is_file():
            raise SwintormerError(f"The folder {place} holds no {WEIGHTS}: save_pretrained writes such folders.")
        return found
    if _is_path(place):
        raise SwintormerError(f"There is no folder {place}: name one of save_pretrained, or a repository, owner/name.")
    hub = _hub()
    absent = None if download.get("local_files_only") else _why_unreachable(hub, str(place), download)
    if absent is not None:
        download["local_files_only"] = True
    try:
        return Path(hub.hf_hub_download(str(place), WEIGHTS, library_name="swintormer", **download))
    except hub.errors.LocalEntryNotFoundError as error:
        reason = absent or first_line(error)
        raise SwintormerError(
            f"{place} is no folder here, was not downloaded before, and the hub cannot be reached ({reason})."
        ) from error
    except _faults(hub) as error:
        raise SwintormerError(
            f"{place} is no folder here, and the hub gives no {WEIGHTS}: {first_line(error)}."
        ) from error


def _why_unreachable(hub: Any, repository: str, download: dict[str, Any]) -> str | None:
    """Why the hub gives no answer, or answers that it is out of order; None where it answers anything else.

    One request: hf_hub_download would repeat it for 25 seconds when it fails.
    """
    try:
        url = hub.hf_hub_url(repository, WEIGHTS, revision=download.get("revision"), endpoint=download.get("endpoint"))
        hub.get_hf_file_metadata(url, token=download.get("token"), timeout=PATIENCE)
    except (hub.errors.HfHubHTTPError, hub.errors.LocalTokenNotFoundError, ValueError) as error:
        if getattr(getattr(error, "response", None), "status_code", 0) >= 500:
            return first_line(error)
        return None  # hf_hub_download fails in the same way, and at once
    except _faults(hub) as error:
        return first_line(error)
    return None


def _is_path(place: str | Path) -> bool:
    """Whether it can only be meant as a folder, so that the hub must not be asked."""
    name = str(place)
    return isinstance(place, Path) or name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1


def save_pretrained(net: Swintormer | Checkpoint, folder: str | Path, *, license: str | None = None) -> None:
    """Write weights, sizes and model card into a folder, which is made; a card that is there stays.

    Args:
        license: of the weights, as the hub names it ("apache-2.0", "cc-by-4.0", "other"): for the model card and for
            the file of weights. None: what the checkpoint says, or nothing.

    Raises:
        InputError: the licence is not such a name.
        SwintormerError: huggingface_hub is not installed, or the folder cannot be written.
    """
    _Pretrained()(_licensed(net, license)).save_pretrained(folder)


def push_to_hub(net: Swintormer | Checkpoint, repository: str, *, license: str | None = None, **options: Any) -> str:
    """Write the same into a repository of the hub, which is made; returns the address of the commit.

    Args:
        repository: owner/name.
        license: as for `save_pretrained`.
        **options: of `huggingface_hub.ModelHubMixin.push_to_hub`: `private`, `token`, `branch`, `commit_message`, ...

    Raises:
        InputError: the licence is not such a name.
        SwintormerError: huggingface_hub is not installed, or the hub cannot be reached or refuses.
    """
    made = _Pretrained()(_licensed(net, license))
    try:
        return str(made.push_to_hub(repository, **options))
    except _faults(_hub()) as error:
        raise SwintormerError(f"Cannot write {repository} on the hub: {first_line(error)}.") from error


def _faults(hub: Any) -> tuple[type[BaseException], ...]:
    """The errors of huggingface_hub, and of the library that makes its requests, which depends on its version."""
    return OSError, ValueError, *hub.errors.HfHubHTTPError.__bases__


def _licensed(net: Swintormer | Checkpoint, license: str | None) -> Checkpoint:
    """The checkpoint, with the licence among the notes of its model card."""
    checkpoint = checkpoint_of(net)
    if license is None:
        return checkpoint
    if not isinstance(license, str) or not re.fullmatch(r"[A-Za-z0-9.+-]+", license):
        raise InputError(f"Expected a licence as the hub names it, such as apache-2.0, found {described(license)}.")
    return replace(checkpoint, card={**checkpoint.card, "licence": license})


def _hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise SwintormerError("This needs huggingface_hub: pip install 'swintormer-kernels[hub]'.") from None
    return huggingface_hub


@cache
def _Pretrained() -> Any:  # a class, made when huggingface_hub is there
    """huggingface_hub's mixin around a checkpoint, which writes folders and repositories.

    Not its mixin for torch modules: that one writes files without metadata, does not notice missing sizes, and leaves
    the prior out.
    """

    mixin: Any = _hub().ModelHubMixin

    class Pretrained(  # type: ignore[call-arg]  # keywords that the base takes
        mixin,
        library_name="swintormer",
        pipeline_tag="image-to-image",
        tags=["image-deblurring", "image-restoration"],
        paper_url="https://arxiv.org/abs/2401.05907",
        model_card_template=TEMPLATE,
    ):
        def __init__(self, checkpoint: Checkpoint):
            self.checkpoint = checkpoint

        def _save_pretrained(self, save_directory: Path) -> None:
            save_checkpoint(self.checkpoint, save_directory / WEIGHTS)
            with replacing(save_directory / CONFIG) as file:
                file.write(_config(self.checkpoint).encode())

        def generate_model_card(self, **options: Any) -> Any:
            notes = dict(self.checkpoint.card)
            summary = notes.pop("summary", "A network that removes defocus and motion blur from photographs.")
            sizes = self.checkpoint.net.config.model_dump_json()
            card = super().generate_model_card(summary=summary, notes=notes, sizes=sizes, **options)
            if "licence" in notes:  # of these weights; the program's own says nothing about them
                card.data.license = notes["licence"].lower()
            return card

    return Pretrained


def _config(checkpoint: Checkpoint) -> str:
    prior = {} if checkpoint.prior is None else {"prior": True}
    return json.dumps({"model_type": "swintormer", **checkpoint.net.config.model_dump(), **prior}, indent=2) + "\n"
