"""The custom nodes against what ComfyUI asks of them, with stand-ins of the modules that it gives them."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import types
from pathlib import Path

import pytest
import torch
from cli_files import TINY

from swintormer import Deblurrer, Swintormer, read_checkpoint, save_checkpoint
from swintormer.cli.models import MODELS
from swintormer.inference.memory import resident_bytes

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACK = Path(__file__).resolve().parents[2] / "comfyui"


class Interrupted(Exception):
    """What ComfyUI raises when the user stops a workflow."""


@pytest.fixture
def comfy(monkeypatch, tmp_path):
    """What a node may import of ComfyUI.

    `shown` are the bar's steps, `stop_after` the steps until the user stops, `device` is ComfyUI's, `freed` what was
    asked for on it.
    """
    save_checkpoint(Swintormer(TINY), tmp_path / "mine.safetensors", training_tile=32)
    state = types.SimpleNamespace(shown=[], stop_after=10**9, folder=tmp_path, device=torch.device("cpu"), freed=[])

    class ProgressBar:
        def __init__(self, total):
            assert isinstance(total, int)

        def update_absolute(self, value, total=None, preview=None):
            state.shown.append((value, total))

    def throw() -> None:
        if len(state.shown) >= state.stop_after:
            raise Interrupted

    def module(name: str, **names: object) -> types.ModuleType:
        made = types.ModuleType(name)
        made.__dict__.update(names)
        monkeypatch.setitem(sys.modules, name, made)
        return made

    management = module(
        "comfy.model_management",
        get_torch_device=lambda: state.device,
        free_memory=lambda memory_required, device, keep_loaded=(): state.freed.append((memory_required, device)),
        throw_exception_if_processing_interrupted=throw,
    )
    module("comfy", model_management=management, utils=module("comfy.utils", ProgressBar=ProgressBar))
    module(
        "folder_paths",
        get_filename_list=lambda folder: {"upscale_models": ["mine.safetensors"]}[folder],
        get_full_path_or_raise=lambda folder, name: str(tmp_path / name),
    )
    return state


@pytest.fixture
def pack(comfy, monkeypatch):
    """The folder, imported as ComfyUI does (load_custom_node in nodes.py): by its path, which is the name, too."""
    name = str(PACK).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, PACK / "__init__.py")
    made = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, made)
    spec.loader.exec_module(made)
    yield made
    sys.modules.pop(f"{name}.nodes")


def executed(node, **inputs):
    """The outputs of a node as ComfyUI runs it (execution.py): a fresh object, inputs by name, in inference mode."""
    with torch.inference_mode():
        outputs = getattr(node(), node.FUNCTION)(**inputs)
    assert isinstance(outputs, tuple)
    assert len(outputs) == len(node.RETURN_TYPES)
    return outputs


def test_conventions(pack):
    assert pack.NODE_CLASS_MAPPINGS.keys() == pack.NODE_DISPLAY_NAME_MAPPINGS.keys()
    for node in pack.NODE_CLASS_MAPPINGS.values():
        inputs = node.INPUT_TYPES()
        names = [name for kind in ("required", "optional") for name in inputs.get(kind, {})]
        function = getattr(node(), node.FUNCTION)
        assert list(inspect.signature(function).parameters) == names
        assert isinstance(node.RETURN_TYPES, tuple)
        assert all(isinstance(name, str) for name in (*node.RETURN_TYPES, node.CATEGORY))
        for kind, *options in inputs["required"].values():
            assert isinstance(kind, list if kind != str(kind) else str)
            assert len(options) <= 1
            assert all(isinstance(option, dict) for option in options)


def test_files_of_the_folder_and_those_that_ship(pack, comfy):
    load = pack.NODE_CLASS_MAPPINGS["LoadSwintormer"]
    (names, _), *_ = load.INPUT_TYPES()["required"].values()
    assert names[-1] == "mine.safetensors"
    assert {name.split()[0] for name in names[:-1]} == MODELS.keys()
    (deblur,) = executed(load, model_name="mine.safetensors")
    assert isinstance(deblur, Deblurrer)
    assert deblur.net.config == TINY
    before = load.IS_CHANGED("mine.safetensors")
    save_checkpoint(Swintormer(TINY), comfy.folder / "mine.safetensors")
    assert load.IS_CHANGED("mine.safetensors") != before, "ComfyUI loads a changed file again"
    (shipped,) = executed(load, model_name=names[0])
    assert shipped.net.config.window_size == 8
    by_name = {name.split()[0]: name for name in names[:-1]}
    (wide,) = executed(load, model_name=by_name["wide"])
    assert wide.scales == "auto"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_pictures(pack, comfy, dtype):
    (deblur,) = executed(pack.LoadSwintormer, model_name="mine.safetensors")
    image = torch.rand(2, 40, 50, 4).to(dtype)
    before, deblur.batch = image.clone(), 3
    (restored,) = executed(pack.DeblurSwintormer, model=deblur, image=image, strength=0.7)
    assert (restored.shape, restored.dtype) == (image.shape, dtype)
    assert torch.equal(image, before), "other nodes may use the picture, too"
    assert torch.equal(restored[..., 3], image[..., 3])
    tiny = read_checkpoint(comfy.folder / "mine.safetensors")
    expected = Deblurrer(tiny, strength=0.7, batch=3)(image[..., :3].float().permute(0, 3, 1, 2)).clamp(0, 1)
    assert torch.equal(restored[..., :3], expected.permute(0, 2, 3, 1).to(dtype))
    assert comfy.shown == [(3, 8), (6, 8), (8, 8)], "four tiles of each picture"
    assert deblur.strength == 1, "of the node, not of the network that other nodes use"
    (rgb,) = executed(pack.DeblurSwintormer, model=deblur, image=image[..., :3], strength=0.7)
    assert torch.equal(rgb, restored[..., :3])
    whole, more = (executed(pack.DeblurSwintormer, model=deblur, image=image, strength=s)[0] for s in (1.0, 1.5))
    assert torch.equal(whole, more), "a number from another node is not checked by ComfyUI"
    assert comfy.freed == []


def test_packed_weights_are_kept(pack):
    """ComfyUI loads in inference mode, where weights have no versions: they would be packed again for every tile."""
    (deblur,) = executed(pack.LoadSwintormer, model_name="mine.safetensors")
    assert not any(parameter.is_inference() for parameter in deblur.net.parameters())


def test_devices(pack, comfy):
    """On a GPU, ComfyUI's other networks make room; for a device that the network does not know, the CPU works."""
    comfy.device = torch.device("xpu")
    (deblur,) = executed(pack.LoadSwintormer, model_name="mine.safetensors")
    assert deblur.device == torch.device("cpu")
    image = torch.rand(1, 40, 50, 3)
    executed(pack.DeblurSwintormer, model=deblur, image=image, strength=1.0)
    assert comfy.freed == []

    class OnGpu:
        net, tile, dtype, device = deblur.net, 32, torch.float32, torch.device("cuda", 1)

        def __call__(self, pictures, progress):
            return pictures.clone()

    executed(pack.DeblurSwintormer, model=OnGpu(), image=image, strength=1.0)
    ((room, device),) = comfy.freed
    assert device == torch.device("cuda", 1)
    assert room == 2 * resident_bytes(deblur.net.config, 4 * OnGpu.tile**2)


def test_the_user_stops_it(pack, comfy):
    (deblur,) = executed(pack.LoadSwintormer, model_name="mine.safetensors")
    deblur.batch, comfy.stop_after = 1, 3
    with pytest.raises(Interrupted):
        executed(pack.DeblurSwintormer, model=deblur, image=torch.rand(1, 100, 100, 3), strength=1.0)
    assert len(comfy.shown) == 3


def test_the_registry_can_take_the_folder():
    """docs.comfy.org/registry/specifications: a licence as a table, a name without ComfyUI, three numbers."""
    project = tomllib.loads((PACK / "pyproject.toml").read_text())
    assert set(project["project"]["license"]) <= {"file", "text"}
    assert "comfyui" not in project["project"]["name"].lower()
    assert len(project["project"]["name"]) < 100
    assert [part.isdecimal() for part in project["project"]["version"].split(".")] == [True] * 3
    assert "Repository" in project["project"]["urls"]
    assert {"PublisherId", "DisplayName"} <= project["tool"]["comfy"].keys()
    assert project["project"]["dependencies"] == (PACK / "requirements.txt").read_text().split()
    assert {path.name for path in PACK.iterdir()} >= {"__init__.py", "README.md", "pyproject.toml"}
