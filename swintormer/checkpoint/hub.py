"""Checkpoints in folders of the Hugging Face hub's layout, and on the hub itself.

A folder holds `model.safetensors` (a file of `save_checkpoint`, which describes itself), `config.json` (the sizes, for
readers other than this package) and `README.md` (a model card with the hub's metadata). A folder is read without
huggingface_hub and without a network; the hub is asked only for names that are no folder here.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from swintormer.checkpoint.checkpoint import Checkpoint, checkpoint_of, read_checkpoint, save_checkpoint
from swintormer.errors import InputError, SwintormerError, described, first_line
from swintormer.images.files import is_folder, replacing
from swintormer.model.network import Swintormer

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"

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
    try:
        return Path(hub.hf_hub_download(str(place), WEIGHTS, library_name="swintormer", **download))
    except hub.errors.LocalEntryNotFoundError as error:
        raise SwintormerError(
            f"{place} is no folder here, and the hub cannot be reached ({first_line(error)})."
        ) from error
    except (OSError, ValueError) as error:  # all of huggingface_hub's errors are one or the other
        raise SwintormerError(
            f"{place} is no folder here, and the hub gives no {WEIGHTS}: {first_line(error)}."
        ) from error


def _is_path(place: str | Path) -> bool:
    """Whether it can only be meant as a folder, so that the hub must not be asked."""
    name = str(place)
    return isinstance(place, Path) or name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1


def save_pretrained(net: Swintormer | Checkpoint, folder: str | Path) -> None:
    """Write weights, sizes and model card into a folder, which is made; a card that is there stays.

    Raises:
        SwintormerError: huggingface_hub is not installed, or the folder cannot be written.
    """
    _Pretrained()(checkpoint_of(net)).save_pretrained(folder)


def push_to_hub(net: Swintormer | Checkpoint, repository: str, **options: Any) -> str:
    """Write the same into a repository of the hub, which is made; returns the address of the commit.

    Args:
        repository: owner/name.
        **options: of `huggingface_hub.ModelHubMixin.push_to_hub`: `private`, `token`, `branch`, `commit_message`, ...

    Raises:
        SwintormerError: huggingface_hub is not installed, or the hub cannot be reached or refuses.
    """
    made = _Pretrained()(checkpoint_of(net))
    try:
        return str(made.push_to_hub(repository, **options))
    except (OSError, ValueError) as error:
        raise SwintormerError(f"Cannot write {repository} on the hub: {first_line(error)}.") from error


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
