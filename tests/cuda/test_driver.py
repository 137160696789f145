"""The loading of libcuda at run time and the launches, with a libcuda that only writes down what it is asked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from swintormer_kernels import native

HERE = Path(__file__).parent
SCRIPT = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("_native", sys.argv[1])
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)
launch = dict(image=sys.argv[2], kernel="k", device=1, grid=7, threads=256, shared_bytes=50000, pointers=[11, 2**63],
              integers=[1, -2, 3], floats=[0.5], stream=77)
"""
LAUNCH = "0x300 7,1,1 256,1,1 50000 0x4d 11 9223372036854775808 1 -2 3 0.5 1 in 0x101"


@pytest.fixture(scope="module", params=["", "-DFAKE_CUDA_12_3"], ids=["newest", "without cuKernelGetParamInfo"])
def fake(request, tmp_path_factory):
    """Folder of a libcuda.so.1 that runs nothing."""
    return build(tmp_path_factory.mktemp("fake"), request.param)


def build(folder, flag):
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs c++")
    command = [compiler, "-shared", "-fPIC", *flag.split(), str(HERE / "fake_libcuda.cpp"), "-o"]
    subprocess.run([*command, str(folder / "libcuda.so.1")], check=True)
    return folder


def run(extension, folder, script, **environment):
    """(what the script printed, calls of the driver, errors) of a Python without torch."""
    log, image = folder / "log", folder / "image.fatbin"
    log.write_text("")
    image.write_bytes(b"fatbin of the test")
    done = subprocess.run(
        [sys.executable, "-S", "-c", SCRIPT + script, extension.__file__, str(image)],
        env={**os.environ, "LD_LIBRARY_PATH": str(folder), "FAKE_CUDA_LOG": str(log), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip(), log.read_text().splitlines(), done.stderr


def test_a_launch_gets_the_struct_the_stream_and_the_devices_context(extension, fake):
    _, calls, errors = run(extension, fake, "native.cuda_launch(**launch)")
    assert not errors
    calls = [call.strip() for call in calls if not call.startswith("cuKernelGetParamInfo")]
    assert calls == [
        "cuInit 0",
        "cuDevicePrimaryCtxRetain 1",
        "cuCtxPushCurrent 0x101",
        "cuLibraryLoadData fatbin",
        "cuLibraryGetKernel 0x200 k",
        "cuKernelSetAttribute 8 50000 0x300 1",
        f"cuLaunchKernel {LAUNCH}",
        "cuCtxPopCurrent",
    ]


def test_what_is_loaded_is_kept_and_more_shared_memory_is_asked_for_when_needed(extension, fake):
    script = """
for bytes in (0, 49152, 50000, 40000, 60000):
    native.cuda_launch(**{**launch, "shared_bytes": bytes})
native.cuda_launch(**{**launch, "grid": 0})
"""
    _, calls, errors = run(extension, fake, script)
    assert not errors
    names = [call.split()[0] for call in calls]
    assert [names.count(f"cu{name}") for name in ("LibraryLoadData", "LibraryGetKernel", "LaunchKernel")] == [1, 1, 5]
    assert [call.split()[2] for call in calls if "SetAttribute" in call] == ["50000", "60000"]


def test_facts_of_a_device_and_the_drivers_version(extension, fake):
    script = "print(native.cuda_device_facts(2), native.cuda_driver_version(), repr(native.cuda_driver_absent()))"
    assert run(extension, fake, script, FAKE_CUDA_VERSION="12040")[0] == "(2075, 2076, 2016, 2097) 12040 ''"


FAILS = {
    "cuLaunchKernel": "CudaDriverError: the launch of k (7 blocks of 256 threads, 50000 bytes of shared memory) "
    "failed: the fake refuses (701)",
    "cuKernelSetAttribute": "CudaDriverError: asking for 50000 bytes of shared memory for k failed",
    "cuLibraryGetKernel": "CudaDriverError: cuLibraryGetKernel of k in ",
    "cuLibraryLoadData": "CudaDriverError: cuLibraryLoadData of ",
    "cuDevicePrimaryCtxRetain": "CudaDriverError: cuDevicePrimaryCtxRetain of device 1 failed",
    "cuInit": "CudaDriverError: cuInit failed: the fake refuses",
}


@pytest.mark.parametrize("function", FAILS)
def test_each_refusal_of_the_driver_is_a_sentence_and_the_context_is_put_back(extension, fake, function):
    _, calls, errors = run(extension, fake, "native.cuda_launch(**launch)", FAKE_CUDA_FAILS=function)
    assert FAILS[function] in errors
    assert sum("PushCurrent" in call for call in calls) == sum("PopCurrent" in call for call in calls)


def test_another_number_of_arguments_is_refused_before_the_launch(extension, tmp_path):
    _, calls, errors = run(extension, build(tmp_path, ""), "native.cuda_launch(**launch)", FAKE_CUDA_BYTES="40")
    assert "CudaDriverError: k takes 40 bytes of arguments, found 32" in errors
    assert not any("cuLaunchKernel" in call for call in calls)


def test_a_missing_fatbin_is_named(extension, fake):
    _, _, errors = run(extension, fake, "native.cuda_launch(**{**launch, 'image': '/nowhere.fatbin'})")
    assert "CudaDriverError: the kernels in /nowhere.fatbin could not be read" in errors


def test_a_driver_before_cuda_12_and_none_at_all(extension, tmp_path):
    old = run(extension, build(tmp_path, "-DFAKE_CUDA_11"), "print(native.cuda_driver_absent())")[0]
    assert old == "the driver has no cuLaunchKernel, which CUDA 12.0 brought; install a newer driver"
    (tmp_path / "libcuda.so.1").write_text("no library")
    script = "print(native.cuda_driver_absent())\nnative.cuda_launch(**launch)"
    absent, _, errors = run(extension, tmp_path, script)
    assert absent.startswith("libcuda.so.1 could not be loaded (")
    assert f"CudaDriverError: {absent}" in errors


def test_the_extension_links_neither_cuda_nor_torch(extension):
    tool = shutil.which("readelf")
    if tool is None:
        pytest.skip("needs readelf")
    told = subprocess.run([tool, "-d", native.extension().__file__], capture_output=True, text=True, check=True).stdout
    assert not [line for line in told.splitlines() if "NEEDED" in line and ("cuda" in line or "torch" in line)]
